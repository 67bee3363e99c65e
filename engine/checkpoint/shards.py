"""The files of a checkpoint, and the tensors that an index puts in each."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from fastslow.engine.host.files import is_file, read_object, shown
from fastslow.engine.host.gguf_file import is_gguf

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPORT = "quant_model_weight*.safetensors"  # how exporters of W8A8 name their files


def shards_of(folder: Path) -> dict[Path, set[str] | None]:
    """The files to read, and the tensors that the index puts in each (None without an index)."""
    if is_gguf(folder):
        return {folder: None}
    if is_file(folder / SINGLE):
        return {folder / SINGLE: None}
    index = folder / INDEX
    if not is_file(index):
        exported, alone = list(folder.glob(f"{EXPORT}.index.json")), list(folder.glob(EXPORT))
        if len(alone) == 1 and not exported:
            return {alone[0]: None}
        if len(exported) != 1:
            raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}")
        index = exported[0]
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} must hold an object weight_map from tensor names to files")
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _inside(file):
            raise ValueError(
                f"{index}: tensor {name:.99} points to {shown(file)}, outside the folder"
            )
        shards.setdefault(file, set()).add(name)
    for file, names in shards.items():
        if not is_file(folder / file):
            raise ValueError(
                f"{index}: tensor {min(names):.99} is in {file:.99}, which does not exist"
            )
    return {folder / file: names for file, names in shards.items()}


def _inside(file: str) -> bool:
    path = PurePosixPath(file.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts

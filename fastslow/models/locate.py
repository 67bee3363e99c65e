"""Where a model is: a folder, a GGUF file, or a built-in name."""

from __future__ import annotations

from pathlib import Path

from fastslow.engine.params import nearest
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Tokenizer


def resolve_model(model: str | Path) -> Path:
    """The folder of a model given by path or by a built-in name; a GGUF file is converted once.

    Raises:
        ValueError: neither a folder, a GGUF file nor a built-in name (the nearest one is told).
    """
    if Path(model).is_dir():
        return Path(model)
    # Imported here: a checkpoint folder needs nothing that converts.
    from fastslow.models.builtin import BUILTIN, builtin_path, gguf_path

    if Path(model).suffix == ".gguf" and Path(model).is_file():
        return gguf_path(Path(model))
    if str(model) in BUILTIN:
        return builtin_path(str(model))
    raise ValueError(
        f"model={str(model)!r} is no folder and no built-in{nearest(str(model), BUILTIN)}"
    )


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; a checkpoint without one takes token ids only."""
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return load_tokenizer(folder)
    return None

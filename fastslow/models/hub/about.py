"""Facts of a model, said before its weights are fetched; and the heads and draft models published for it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from loguru import logger

from fastslow.engine.checkpoint.published.layout import published_reader
from fastslow.engine.checkpoint.quantised import Scheme
from fastslow.engine.host.files import read_object
from fastslow.engine.host.gguf_file import GgufFile
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import GGUF_ARCHITECTURE, gguf_family
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.hub.name import HubName
from fastslow.models.hub.repository import CONFIG, Repository
from fastslow.policies.modes import load_modes

PACKED = re.compile(r"[-_.](gguf|gptq|awq|fp8|int[48]|w[48]a(8|16)|bnb|4bit|8bit).*", re.IGNORECASE)
Published = Mapping[str, Sequence[str]]  # "heads", "drafts" (models) -> names, the best first


@cache
def _table() -> dict[str, Published]:
    text = (files("fastslow.models.hub") / "published.json").read_text("utf-8")
    table: dict[str, Published] = json.loads(text)
    return table | {target.partition("/")[2].lower(): found for target, found in table.items()}


def published(name: HubName) -> Published:
    """Return the heads and draft models known for a target, also for quantised copies of it by other owners."""
    alone = PACKED.sub("", name.repo.partition("/")[2]).lower()
    return _table().get(name.repo) or _table().get(alone) or {}


def propose_drafts(model: str) -> None:
    """Write one log line where a head or a draft model is published for a model with this name."""
    name = None if Path(model).exists() else HubName.parse(model)
    found = {} if name is None else published(name)
    if "heads" in found:
        logger.info("a published head exists: --head {}", found["heads"][0])
    elif "drafts" in found:
        logger.info("a small model can draft: --draft-model {}", found["drafts"][0])


def about(repository: Repository, folder: Path) -> str:
    """Describe a model in one line for people: by the small files in a folder, or by what the hub says of a GGUF file.
    ValueError: it does not run here; one sentence."""
    parts = _of_gguf(repository) if repository.is_gguf else _of_folder(repository.name, folder)
    heads = [f"published head {head}" for head in published(repository.name).get("heads", ())]
    return ", ".join((*parts, f"licence {repository.license or 'not named'}", *heads))


def _of_gguf(repository: Repository) -> Iterator[str]:
    said = repository.gguf
    if architecture := said.get("architecture"):
        gguf_family(GgufFile({GGUF_ARCHITECTURE: architecture}, []))
        yield f"GGUF {architecture}"
    if isinstance(said.get("total"), int):
        yield f"{billions(said['total'])} parameters"


def _of_folder(name: HubName, folder: Path) -> Iterator[str]:
    try:
        config = ModelConfig.from_folder(folder)
        Scheme.from_folder(folder), published_reader(folder)  # what no reader knows is not fetched
    except ValueError as error:
        code = "auto_map" in read_object(folder / CONFIG)
        more = "it comes with code, which is never run, and " if code else ""
        said = str(error).replace(f"{folder}{os.sep}", "")  # its place in the cache says nothing
        raise ValueError(f"{name} does not run here: {more}{said}") from None
    yield config.architecture
    units = RoutedUnits.of(config)
    modes = {
        n: mode.routed for n, mode in load_modes(folder, units).items() if n in ("fast", "deep")
    }
    active = [f"{n}: {billions(active_parameters(config, runs))}" for n, runs in modes.items()]
    shares = f" ({', '.join(active)})" if units.most else ""
    yield f"{billions(parameters(config))} parameters{shares}"
    try:
        template = load_template(folder, load_tokenizer(folder), config.architecture)
        yield f"thinking switch {template.switch}"
    except ValueError as error:
        yield f"thinking switch unknown ({error})"


def billions(count: int) -> str:
    """A number of parameters for people: "71.97 B"."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"

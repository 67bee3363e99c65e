"""What a model is, said before its weights are fetched; and which heads and draft models are published for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from loguru import logger

from fastslow.engine.host.files import read_object
from fastslow.engine.host.gguf_file import GgufFile
from fastslow.engine.model.config import ModelConfig, RoutedUnits
from fastslow.engine.model.family import GGUF_ARCHITECTURE, gguf_family
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.hub.name import HubName
from fastslow.models.hub.repository import CONFIG, Repository
from fastslow.policies.modes import load_modes

PACKED = re.compile(
    r"[-_.](?:gguf|gptq|awq|fp8|int[48]|w[48]a(?:8|16)|bnb|4bit|8bit).*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Published:
    """Names of heads and of draft models that others made for a target, the best first."""

    heads: tuple[str, ...] = ()
    drafts: tuple[str, ...] = ()


@cache
def _table() -> dict[str, Published]:
    text = (files("fastslow.models") / "data" / "published_drafts.json").read_text("utf-8")
    return {
        target: Published(tuple(found.get("heads", ())), tuple(found.get("drafts", ())))
        for target, found in json.loads(text).items()
    }


def published(name: HubName) -> Published:
    """What is known for a target, also for quantised copies of it by other owners."""
    if name.repo in _table():
        return _table()[name.repo]
    alone = PACKED.sub("", name.repo.partition("/")[2]).lower()
    return next(
        (known for target, known in _table().items() if target.partition("/")[2].lower() == alone),
        Published(),
    )


def propose_drafts(model: str) -> None:
    """One line in the log where a head or a draft model is published for a model with this name."""
    name = None if Path(model).exists() else HubName.parse(model)
    found = Published() if name is None else published(name)
    if found.heads:
        logger.info("a published head exists: --head {}", found.heads[0])
    elif found.drafts:
        logger.info("a small model can draft: --drafter model --draft-model {}", found.drafts[0])


def about(repository: Repository, folder: Path) -> str:
    """One line for people, of the small files in a folder, or what the hub says of a GGUF file. ValueError in one
    sentence: it does not run here."""
    parts = _of_gguf(repository) if repository.is_gguf else _of_folder(repository.name, folder)
    heads = ", ".join(published(repository.name).heads)
    licence = f"licence {repository.license or 'not named'}"
    return ", ".join((*parts, licence, *([f"published heads: {heads}"] if heads else ())))


def _of_gguf(repository: Repository) -> Iterator[str]:
    if "architecture" in repository.gguf:
        architecture = repository.gguf["architecture"]
        gguf_family(GgufFile({GGUF_ARCHITECTURE: architecture}, []))
        yield f"GGUF {architecture}"
    if isinstance(total := repository.gguf.get("total"), int):
        yield f"{billions(total)} parameters"


def _of_folder(name: HubName, folder: Path) -> Iterator[str]:
    try:
        config = ModelConfig.from_folder(folder)
    except ValueError as error:
        code = "auto_map" in read_object(folder / CONFIG)
        more = "it comes with code, which is never run, and " if code else ""
        raise ValueError(f"{name} does not run here: {more}{error}") from None
    yield config.architecture
    units = RoutedUnits.of(config)
    modes = load_modes(folder, units)
    active = [
        f"{name}: {billions(active_parameters(config, modes[name].routed))}"
        for name in ("fast", "deep")
        if units.most and name in modes
    ]
    yield f"{billions(parameters(config))} parameters" + (
        f" ({', '.join(active)})" if active else ""
    )
    try:
        template = load_template(folder, load_tokenizer(folder), config.architecture)
        yield f"thinking switch {template.switch}"
    except ValueError as error:
        yield f"thinking switch unknown ({error})"


def billions(count: int) -> str:
    """A number of parameters for people: "71.97 B"."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"

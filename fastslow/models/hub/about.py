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
from fastslow.engine.model.config import ModelConfig, RoutedUnits
from fastslow.engine.model.family import architecture_in, family_of, gguf_architectures
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


def check_family(repository: Repository, folder: Path) -> None:
    """ValueError in one sentence for a model that does not run here, before its weights come."""
    name = repository.name
    if repository.is_gguf:
        said = (repository.gguf or {}).get("architecture")
        if isinstance(said, str) and said not in (known := gguf_architectures()):
            raise ValueError(
                f"{name} is of the architecture {said!r}, not one of {', '.join(known)}"
            )
        return
    raw = read_object(folder / CONFIG)
    try:
        family_of(architecture_in(raw))
    except ValueError as error:
        code = "it comes with code, which is never run, and " if raw.get("auto_map") else ""
        raise ValueError(f"{name} does not run here: {code}{error}") from None


def about(repository: Repository, folder: Path) -> str:
    """One line for people. ValueError: its config.json does not fit its family."""
    return ", ".join(part for part in _parts(repository, folder) if part)


def _parts(repository: Repository, folder: Path) -> Iterator[str]:
    if repository.is_gguf:
        said = repository.gguf or {}
        yield f"GGUF {said.get('architecture', '')}".strip()
        if isinstance(total := said.get("total"), int):
            yield f"{billions(total)} parameters"
    else:
        config = ModelConfig.from_folder(folder)
        units, whole = RoutedUnits.of(config), parameters(config)
        yield config.architecture
        modes = {name: mode.routed for name, mode in load_modes(folder, units).items()}
        active = {
            n: billions(active_parameters(config, modes[n])) for n in ("fast", "deep") if n in modes
        }
        shares = (
            f" ({' and '.join(f'{n}: {a}' for n, a in active.items())} active)"
            if units.most
            else ""
        )
        yield f"{billions(whole)} parameters{shares}"
        try:
            tokenizer = load_tokenizer(folder)
            yield f"thinking switch {load_template(folder, tokenizer, config.architecture).switch}"
        except ValueError as error:
            yield f"thinking switch unknown ({error})"
    yield f"licence {repository.license or 'not named'}"
    if heads := published(repository.name).heads:
        yield f"published heads: {', '.join(heads)}"


def billions(count: int) -> str:
    """A number of parameters for people: "71.97 B"."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"

"""`fastslow models`: what is in the caches, what of it runs, and what else would fit into this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastslow.tools.cli.options import JsonLines, expand_options

if TYPE_CHECKING:
    from fastslow.models.hub.repository import Repository

# in config.json of published heads and assistants
HEAD_KEYS = {"draft_vocab_size", "speculators_model_type", "backbone_hidden_size"}
ROOM = 1.2  # memory that a model needs, as a multiple of its weights: keys, values, a step's own


class KnownModel(NamedTuple):
    """A model that is here, or is recommended."""

    name: str
    size: int  # bytes of its weights; 0 = not known, or little
    said: str
    why_not: str = ""  # it does not run; "" = it does


@expand_options
def models(as_json: JsonLines = False) -> None:
    """List the models that were fetched or made, those that could be fetched, and whether they fit into the memory
    that is free now; and others that do not run, with the reason.

    Every name works wherever a model is named: `fastslow chat NAME`, `fastslow serve NAME`, `LLM("NAME")`. A model
    that is not here is fetched at its first use.

    Example:
      fastslow models --json
    """
    from fastslow.engine.host.machine import free_memory
    from fastslow.engine.kv.budget import format_bytes
    from fastslow.models.locate import BUILTIN
    from fastslow.tools.cli import screen

    free = free_memory("cpu")
    here = [*(KnownModel(name, 0, said) for name, said in BUILTIN.items()), *_fetched()]
    names = {one.name for one in here}
    there = [one for one in _recommended() if one.name not in names]
    kinds = {"here": here, "to be fetched, with about these sizes": there}
    kinds["that are known, and do not run"] = [*_refused()]
    for title, some in kinds.items():
        if some and not as_json:
            screen.console().print(f"{title}:")
        for one in some:
            fits = one.size * ROOM < free
            if as_json:
                facts = {"model": one.name, "here": some is here, "size": one.size, "fits": fits}
                screen.write_json(
                    facts | {"runs": not one.why_not, "said": one.why_not or one.said}
                )
                continue
            size = format_bytes(one.size) if one.size else ""
            said = one.why_not or one.said + ("" if fits else "; too large for the free memory")
            screen.console().print(f"  {one.name:<36} {size:>9}  {said}")
    if not as_json:
        screen.console().print(f"{format_bytes(free)} of memory are free now")


def _refused() -> Iterator[KnownModel]:
    from fastslow.engine.model.family import refusals

    for name, why in refusals():
        yield KnownModel(name, 0, "", why)


def _fetched() -> Iterator[KnownModel]:
    """Of each repository in the hub's cache what its usual revision holds; draft heads are left out."""
    from fastslow.models.hub.hubs import open_hub

    hub = open_hub()
    for name in hub.names():
        found = hub.cached(name)
        if found.files and not _is_head(found, hub.folder(found)):
            yield from _of(found, hub.folder(found))


def _is_head(found: Repository, folder: Path) -> bool:
    from fastslow.engine.host.files import read_object
    from fastslow.models.hub.repository import CONFIG, HEADS

    if CONFIG not in found.files:
        return not HEADS.isdisjoint(found.files) and not found.is_gguf
    try:
        return not HEAD_KEYS.isdisjoint(read_object(folder / CONFIG))
    except ValueError:  # damaged: it is listed with the reason
        return False


def _of(found: Repository, folder: Path) -> Iterator[KnownModel]:
    from dataclasses import replace

    from fastslow.engine.host.files import read_object
    from fastslow.models.hub.about import about
    from fastslow.models.hub.name import HubName

    names = [found.name]
    if variants := found.variants():
        names = [HubName(found.name.repo, "", variant) for variant in variants]
        names += [found.name] if not found.is_gguf else []
    for name in names:
        one = replace(found, name=name)
        try:
            weights = one.weights(lambda path: read_object(folder / path))
            one = replace(one, gguf=_header(folder / weights[0].path) if one.is_gguf else {})
            yield KnownModel(str(name), sum(file.size for file in weights), about(one, folder))
        except (OSError, ValueError) as error:
            yield KnownModel(str(name), 0, "", str(error))


def _header(path: Path) -> dict[str, Any]:
    """Read from a GGUF file what a hub would say of it, as far as the file says it."""
    from fastslow.engine.host.gguf_file import read_gguf

    return {"architecture": read_gguf(path).fields.get("general.architecture")}


def _recommended() -> Iterator[KnownModel]:
    text = (files("fastslow.models") / "data" / "recommended.json").read_text("utf-8")
    for one in json.loads(text):
        size = int(one["parameters"] * 1e9 * one["bits"] / 8)
        active = one["active"] / one["parameters"]
        share = f" ({one['active']} B active)" if active < 1 else ""
        yield KnownModel(one["model"], size, f"{one['parameters']} B{share}: {one['why']}")

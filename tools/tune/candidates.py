"""Candidates that are tried: drafters by lengths, and how a setting is called in tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastslow.draft.registry import drafter_names
from fastslow.engine.params import Speculation
from fastslow.llm import LLM

PLAIN = Speculation(drafter="off", nodes=0)
ADAPTIVE = "adaptive"
JOINED = ("suffix|head", "suffix|self")

Length = int | None  # None: chosen step by step
LENGTHS: tuple[Length, ...] = (2, 4, 8, None)  # where nobody says which


def read_lengths(text: str) -> list[Length]:
    """Lengths from a command line: "0,2,4,adaptive". ValueError for another entry."""
    lengths: list[Length] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part != ADAPTIVE and not (part.isascii() and part.isdigit()):
            raise ValueError(f"lengths: {part!r} is neither a number nor {ADAPTIVE!r}")
        nodes = None if part == ADAPTIVE else int(part)
        lengths.append(Speculation(nodes=nodes).nodes)  # which checks the limits
    if not lengths:
        raise ValueError(f"lengths={text!r} names no length")
    return list(dict.fromkeys(lengths))


def default_drafters(llm: LLM) -> list[Speculation]:
    """The drafters, alone and JOINED, that the model takes with nothing but itself."""
    found = (Speculation(drafter=name) for name in (*drafter_names(), *JOINED))
    return [setting for setting in found if _takes(llm, setting)]


def _takes(llm: LLM, setting: Speculation) -> bool:
    try:  # everything is checked at once, and nothing runs until a stream is read
        llm.stream([0], speculation=setting)
    except ValueError:
        return False
    return True


def grid(drafters: Iterable[Speculation], lengths: Sequence[Length]) -> list[Speculation]:
    """Every drafter with every length; plain decoding is not among them, and nothing is twice."""
    found = [
        drafter.model_copy(update={"nodes": nodes})
        for drafter in drafters
        for nodes in lengths
        if nodes != 0 and drafter.drafter != "off"
    ]
    return list(dict.fromkeys(found))


def is_plain(setting: Speculation) -> bool:
    """Tell whether nothing is drafted."""
    return setting.drafter == "off" or setting.nodes == 0


def family(setting: Speculation) -> str:
    """The drafter without its length, for people: "self, groups=2"."""
    if is_plain(setting):
        return "plain"
    usual = Speculation()
    special = [
        f"{name}={value}"
        for name, value in setting
        if name not in ("drafter", "nodes") and value != getattr(usual, name)
    ]
    return ", ".join([setting.drafter, *special])


def length_of(setting: Speculation) -> str:
    """The length, for people: "4" or "adaptive"."""
    return ADAPTIVE if setting.nodes is None else str(setting.nodes)


def label(setting: Speculation) -> str:
    """A setting in a word or two: "ngram · 4"."""
    return "plain" if is_plain(setting) else f"{family(setting)} · {length_of(setting)}"

"""What `bench` and `tune` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastslow.engine.params import SamplingParams, Speculation
    from fastslow.llm import LLM
    from fastslow.tools.tune.candidates import Length
    from fastslow.tools.tune.prompts import Conversation

WHAT, HOW = "What is tried", "How it is measured"

Prompts = Annotated[
    Path,
    typer.Option(
        help="JSON lines, each with prompt, messages, turns or question.", show_default=False
    ),
]
MaybePrompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="JSON lines, each with prompt, messages, turns or question.",
        show_default=False,
    ),
]
Drafters = Annotated[
    str | None,
    typer.Option(
        help="Such as ngram,self; default: all that need no further file.",
        rich_help_panel=WHAT,
        show_default=False,
    ),
]
Lengths = Annotated[
    str | None,
    typer.Option(
        help="Tokens drafted per step, such as 2,4,adaptive; default: a spread of them.",
        rich_help_panel=WHAT,
        show_default=False,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        help="Folder of the small model of drafter model.", rich_help_panel=WHAT, show_default=False
    ),
]
Tokens = Annotated[int, typer.Option(help="Most tokens of an answer.", rich_help_panel=HOW)]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Take so many of the prompts, spread over the file.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 = always the likeliest token; default: the mode's own.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]


class Measuring:
    """The options of a command line that measures, read before the model is loaded.

    Args:
        drafters, lengths: as on the command line; None = the usual ones.
        draft_model: for drafter "model".
        tokens: most of an answer.
        temperature: None = the mode's.

    Raises:
        ValueError: one of them is out of range.
    """

    def __init__(
        self,
        drafters: str | None,
        lengths: str | None,
        draft_model: str | None,
        tokens: int,
        temperature: float | None,
    ) -> None:
        from fastslow.engine.params import SamplingParams, Speculation
        from fastslow.tools.tune.candidates import default_lengths, read_lengths

        asked = {"max_tokens": tokens, "temperature": temperature}
        given = {name: value for name, value in asked.items() if value is not None}
        self.sampling: SamplingParams = SamplingParams(**given)  # type: ignore[arg-type]
        self.lengths: list[Length] = default_lengths() if lengths is None else read_lengths(lengths)
        names = [] if drafters is None else listed("drafters", drafters)
        if draft_model is not None and drafters is None:
            names = ["model"]
        self._drafters = [
            Speculation(drafter=name, model=draft_model if "model" in name.split("+") else None)
            for name in names
        ]

    def settings(self, llm: LLM) -> list[Speculation]:
        """What to try with a model, plain decoding left out.

        Raises:
            ValueError: nothing is left.
        """
        from fastslow.tools.tune.candidates import default_drafters, grid

        found = grid(self._drafters or default_drafters(llm), self.lengths)
        if not found:
            raise ValueError("drafters and lengths leave nothing but plain decoding to measure")
        return found


def listed(name: str, text: str) -> list[str]:
    """The parts of "a,b". ValueError if there is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError(f"{name}={text!r} names nothing")
    return list(dict.fromkeys(parts))


def numbers(name: str, text: str) -> list[int]:
    """The whole numbers of "1,8", each at least 1. ValueError for anything else."""
    parts = listed(name, text)
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part) > 0):
            raise ValueError(f"{name}: {part!r} must be a whole number of at least 1")
    return list(dict.fromkeys(map(int, parts)))


def prompts_for(path: Path, limit: int | None) -> list[Conversation]:
    """See `read_prompts`."""
    from fastslow.tools.tune.prompts import read_prompts

    return read_prompts(path, limit)


def writable(path: Path) -> Path:
    """The path, if a file can be made there: better known now than after ten minutes.

    Raises:
        ValueError: its folder is not there, or it is a folder itself.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{str(path)!r} cannot be written: no such folder, or a folder itself")
    return path

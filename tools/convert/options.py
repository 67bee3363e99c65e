"""The options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

shape = partial(typer.Option, rich_help_panel="Shape")
training = partial(typer.Option, rich_help_panel="Training")


@dataclass(frozen=True)
class ConvertOptions:
    """Every field with its meaning; also the options of `fastslow convert`.

    Raises:
        ValueError: a number is out of range, whatever the model.
    """

    groups: Annotated[int, shape(help="Routed groups.")] = 8
    experts: Annotated[int, shape(help="Experts a group.")] = 8
    shared: Annotated[
        int | None, shape(help="FFN neurons of the shared expert; default: about 7/12.")
    ] = None
    width: Annotated[
        int | None,
        shape(help="FFN neurons of a routed expert; default: about 4/5 of its group's pool."),
    ] = None
    fast: Annotated[int, shape(help="Groups that the preset fast runs.")] = 2
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text (.txt, .html, folders) to learn from; may be repeated. Without any, the model "
            "writes all of it."
        ),
    ] = None
    minutes: Annotated[float, training(help="Distil for so long; 0 = not at all.")] = 0.0
    system: Annotated[str, training(help="System message of the chats to learn.")] = (
        "You are a helpful assistant."
    )
    checkpoint: Annotated[
        Path | None, training(help="File to save training to and continue from.")
    ] = None
    recipe: Annotated[Path | None, training(help="Also save what was learnt, without weights.")] = (
        None
    )
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0

    def __post_init__(self) -> None:
        for name in ("groups", "experts"):
            if not 1 <= getattr(self, name) <= 256:
                raise ValueError(f"{name} must be 1 to 256, got {getattr(self, name)}")
        if self.minutes < 0:
            raise ValueError(f"minutes must be 0 or more, got {self.minutes}")
        if not 0 <= self.fast <= self.groups:
            raise ValueError(f"fast must be 0 to {self.groups} groups, got {self.fast}")

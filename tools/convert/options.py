"""The options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

SHAPE, TRAINING = "Shape", "Training"


@dataclass(frozen=True)
class ConvertOptions:
    """Every field with its meaning; also the options of `fastslow convert`.

    Raises:
        ValueError: a number is out of range, whatever the model.
    """

    groups: Annotated[int, typer.Option(help="Routed groups.", rich_help_panel=SHAPE)] = 8
    experts: Annotated[int, typer.Option(help="Experts a group.", rich_help_panel=SHAPE)] = 8
    shared: Annotated[
        int | None,
        typer.Option(
            help="FFN neurons of the shared expert; default: about 7/12.", rich_help_panel=SHAPE
        ),
    ] = None
    width: Annotated[
        int | None,
        typer.Option(
            help="FFN neurons of a routed expert; default: about 4/5 of its group's pool.",
            rich_help_panel=SHAPE,
        ),
    ] = None
    fast: Annotated[
        int, typer.Option(help="Groups that the preset fast runs.", rich_help_panel=SHAPE)
    ] = 2
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text (.txt, .html, folders) to learn from; may be repeated. Without any, the model "
            "writes all of it."
        ),
    ] = None
    minutes: Annotated[
        float, typer.Option(help="Distil for so long; 0 = not at all.", rich_help_panel=TRAINING)
    ] = 0.0
    system: Annotated[
        str, typer.Option(help="System message of the chats to learn.", rich_help_panel=TRAINING)
    ] = "You are a helpful assistant."
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File to save training to and continue from.", rich_help_panel=TRAINING),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option(help="Also save what was learnt, without weights.", rich_help_panel=TRAINING),
    ] = None
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0

    def __post_init__(self) -> None:
        for name in ("groups", "experts"):
            if not 1 <= getattr(self, name) <= 256:
                raise ValueError(f"{name} must be 1 to 256, got {getattr(self, name)}")
        if self.minutes < 0:
            raise ValueError(f"minutes must be 0 or more, got {self.minutes}")
        if not 0 <= self.fast <= self.groups:
            raise ValueError(f"fast must be 0 to {self.groups} groups, got {self.fast}")

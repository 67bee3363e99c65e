"""`fastslow convert`: a dense checkpoint becomes a MoGE checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHAPE, TRAINING = "Shape", "Training"


def convert(
    source: Annotated[str, typer.Argument(help="Dense checkpoint folder, or smollm2.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    groups: Annotated[int, typer.Option(help="Routed groups.", rich_help_panel=SHAPE)] = 8,
    experts: Annotated[int, typer.Option(help="Experts a group.", rich_help_panel=SHAPE)] = 8,
    shared: Annotated[
        int | None,
        typer.Option(help="FFN neurons of the shared expert.", rich_help_panel=SHAPE),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="FFN neurons of a routed expert.", rich_help_panel=SHAPE)
    ] = None,
    fast: Annotated[
        int, typer.Option(help="Groups that the preset fast runs.", rich_help_panel=SHAPE)
    ] = 2,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text (.txt, .html, folders) to learn from; may be repeated."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Distil for so long; 0 = not at all.", rich_help_panel=TRAINING)
    ] = 0.0,
    system: Annotated[
        str,
        typer.Option(help="System message of the chats to learn.", rich_help_panel=TRAINING),
    ] = "You are a helpful assistant.",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Save training here; continue from it.", rich_help_panel=TRAINING),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Also save what was learnt, without weights.", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
) -> None:
    """Turn a dense Llama-like checkpoint into a MoGE checkpoint, in the layout of openPangu.

    Examples:
      fastslow convert path/to/dense path/to/moge
      fastslow convert path/to/dense path/to/moge --minutes 60 --text books/

    Without training the result is a rough copy: expect a clearly higher perplexity.
    """
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.convert.convert import convert as turn

    quiet_log()
    folder = turn(
        resolve_model(source),
        out,
        groups=groups,
        experts=experts,
        shared=shared,
        width=width,
        text=text or (),
        minutes=minutes,
        fast=fast,
        system=system,
        seed=seed,
        recipe_out=recipe,
        checkpoint=checkpoint,
    )
    console().print(f'done: fastslow generate "Hello" --model {folder}')

"""`python -m fastslow.tools.convert.train`: makes and trains a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastslow.tools.convert.convert import convert


def main(
    dense: Annotated[Path, typer.Option(help="Dense Hugging Face folder.")],
    out: Annotated[Path, typer.Option(help="MoGE folder to create.")],
    recipe: Annotated[Path, typer.Option(help="Recipe file to write.")],
    checkpoint: Annotated[Path, typer.Option(help="Saved every five minutes, and continued.")],
    text: Annotated[list[Path] | None, typer.Option(help="Human text; may be repeated.")] = None,
    minutes: Annotated[float, typer.Option(help="Wall-clock minutes of distillation.")] = 81.0,
    system: Annotated[
        str, typer.Option(help="Usual system message of the chats the model writes.")
    ] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    shared: Annotated[int | None, typer.Option(help="Neurons of the shared expert.")] = None,
    width: Annotated[int | None, typer.Option(help="Neurons of a routed expert.")] = None,
    fast: Annotated[int, typer.Option(help="Groups of the preset 'fast'.")] = 2,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
) -> None:
    """Converts a dense model and distils it for a while; the recipe can then be shipped."""
    convert(
        dense,
        out,
        text=text or (),
        minutes=minutes,
        system=system,
        shared=shared,
        width=width,
        fast=fast,
        seed=seed,
        recipe_out=recipe,
        checkpoint=checkpoint,
    )


if __name__ == "__main__":
    typer.run(main)

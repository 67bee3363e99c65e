"""`fastslow convert`: a dense checkpoint becomes a MoGE checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastslow.tools.cli.options import expand_options
from fastslow.tools.convert.options import ConvertOptions


@expand_options
def convert(
    source: Annotated[str, typer.Argument(help="Dense checkpoint folder, or smollm2.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    options: ConvertOptions,
) -> None:
    """Turn a dense Llama-like checkpoint into a MoGE checkpoint, in the layout of openPangu.

    Examples:
      fastslow convert path/to/dense path/to/moge
      fastslow convert path/to/dense path/to/moge --minutes 60 --text books/

    Without training the result is a rough copy: expect a clearly higher perplexity.
    """
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.convert import convert as job

    quiet_log()
    for text in options.text or []:
        if not text.exists():
            raise ValueError(f"text {str(text)!r} cannot be read: there is no such file or folder")
    folder = job.convert(resolve_model(source), out, options)
    console().print(f'done: fastslow generate "Hello" --model {folder}')

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
      fastslow convert path/to/dense path/to/moge --groups 4 --text book.txt

    The result is not trained: a rough copy with a clearly higher perplexity. `examples/smollm2_moge` has the
    training that made smollm2-moge.
    """
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.convert import convert as job
    from fastslow.tools.progress import progress_bar

    quiet_log()
    with progress_bar() as report:
        folder = job.convert(resolve_model(source), out, options, report)
    console().print(f'done: fastslow generate "Hello" --model {folder}')

"""`fastslow cache`: packed weights and other things that were made once and kept."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from fastslow.tools.cli.options import JsonLines, command_group, expand_options

if TYPE_CHECKING:
    from fastslow.engine.backends.cpu.store import Packing

DAY = 24 * 3600.0
KEPT = (  # what we put into the cache folder, which may be one that holds other things, too
    *("packed", "digests", "kernels", "step_times", "kv_spill", "peers"),
    *("smollm2-*", "SmolLM2-*.gguf"),
)

cache = command_group("cache", "List and remove what was made once and kept.")


@cache.command("list")
@expand_options
def show(as_json: JsonLines = False) -> None:
    """Packed weights by when they were used last: of which model, in which format, how large. Those under 64 MB
    are made anew at each start, and are not kept.

    All of them together take no more than FASTSLOW_CACHE_LIMIT (in GB; 100, or half of the free disk if that is
    less): the least recently used go when new weights are packed.

    Example:
      fastslow cache list
    """
    from rich.table import Table

    from fastslow.engine.backends.cpu.store import limit, packings
    from fastslow.engine.host.files import cache_folder
    from fastslow.engine.kv.budget import format_bytes
    from fastslow.tools.cli import screen

    every, most = packings(), limit()
    if as_json:
        for one in every:
            facts = {"path": str(one.path), "model": one.model and str(one.model)}
            screen.write_json(facts | {"format": one.format, "size": one.size, "used": one.used})
        return
    table = Table("model", "format", "size", "used last")
    for one in every:
        days = f"{(time.time() - one.used) / DAY:.1f} days ago"
        table.add_row(_model(one), one.format, format_bytes(one.size), days)
    screen.show(table)
    total = format_bytes(sum(one.size for one in every))
    screen.console().print(f"{total} of at most {format_bytes(most)} in {cache_folder()}")


def _model(one: Packing) -> str:
    if one.model is None:
        return "unknown"
    return str(one.model) + ("" if one.model.exists() else " (gone)")


@cache.command()
@expand_options
def clear() -> None:
    """Remove all that was made once and kept: packed weights, built-in models, compiled kernels, measured times.

    Each is made again when it is needed. End running engines first.

    Example:
      fastslow cache clear
    """
    from fastslow.engine.host.files import cache_folder
    from fastslow.engine.host.unfinished import sweep
    from fastslow.engine.kv.budget import format_bytes

    root, freed = cache_folder(), 0
    sweep(root)
    for path in sorted(found for name in KEPT for found in root.glob(name)):
        files = [one for one in (path, *path.rglob("*")) if one.is_file() and not one.is_symlink()]
        freed += sum(one.stat().st_size for one in files)
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)
        typer.echo(f"removed {path}")
    with suppress(OSError):  # there is none, or it holds what is not ours
        root.rmdir()
    typer.echo(f"{format_bytes(freed)} freed")

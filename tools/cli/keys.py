"""`fastslow keys`: who may use the server."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from fastslow.engine.params import sentence
from fastslow.serve.api.keys import KeyFile, KeyLimits, add_key, remove_key, usual_file
from fastslow.tools.cli.options import OptionFields, check_writable, command_group, expand_options

keys = command_group("keys", "Make, list and remove API keys of the server.")

Name = Annotated[str, typer.Argument(help="Whose key it is, as logs and metrics call it.")]
File = Annotated[
    Path | None,
    typer.Option(
        "--file", help="The keys file; default: FASTSLOW_KEYS, else ~/.config/fastslow/keys.json."
    ),
]


@keys.command()
@expand_options
def add(
    name: Name,
    limits: Annotated[
        KeyLimits,
        OptionFields("requests_per_minute", "tokens_per_minute", "concurrent", "max_tokens"),
    ],
    file: File = None,
    modes: Annotated[
        str | None, typer.Option("--allow-modes", help="The only modes, such as fast,auto.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(help="First and last priority it may ask for, such as 0,5.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New file for the key, for you alone.")
    ] = None,
) -> None:
    """Make a key and print it, or write it to --out: the keys file has only its hash. A running server takes it
    within a second.

    Examples:
      fastslow keys add page
      fastslow keys add bot --requests-per-minute 60 --concurrent 4 --allow-modes fast --out bot.key
    """
    more: dict[str, Any] = {}
    if modes is not None:
        more["modes"] = [mode.strip() for mode in modes.split(",")]
    if priority is not None:
        more["priority"] = _numbers(priority)
    try:
        checked = KeyLimits(**limits.model_dump(exclude_unset=True), **more)
    except ValidationError as error:
        raise ValueError(sentence(error)) from None
    path, where = file or usual_file(), "shown only now"
    if out is not None:
        check_writable(out)
        if out.exists():
            raise ValueError(f"out={str(out)!r} exists: name a new file")
        where = f"in {out} alone"
    key = add_key(path, name, checked)
    if out is None:
        typer.echo(key)
    else:
        with open(out, "x", opener=lambda place, how: os.open(place, how, 0o600)) as written:
            written.write(f"{key}\n")
    typer.echo(f"{name} is in {path}; the key is {where}", err=True)


@keys.command("list")
@expand_options
def show(
    file: File = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Names of the keys, when they were made, and their limits.

    Example:
      fastslow keys list
    """
    from fastslow.tools.cli import screen

    table = Table("name", "made", "limits")
    for key in KeyFile.read(file or usual_file()).keys:
        limits = key.limits.model_dump(mode="json", exclude_none=True)
        if as_json:
            screen.write_json({"name": key.name, "created": key.created, "limits": limits})
        made = time.strftime("%Y-%m-%d", time.gmtime(key.created))
        table.add_row(key.name, made, ", ".join(f"{k} {v}" for k, v in limits.items()) or "none")
    if not as_json:
        screen.show(table)


@keys.command()
@expand_options
def remove(name: Name, file: File = None) -> None:
    """Take a key out of the file; a running server refuses it within a second.

    Example:
      fastslow keys remove page
    """
    path = file or usual_file()
    remove_key(path, name)
    typer.echo(f"{name} is no longer in {path}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"priority={text!r} must be two whole numbers, such as 0,5") from None

"""Commands and settings that pages and help texts name, as a reader types them."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_tools import call, check_ours
from pages import PAGES, blocks, commands, named, ours

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.models.locate import builtin_path
from fastslow.policies.auto import checkpoint_selector
from fastslow.policies.modes import load_modes
from fastslow.serve.openai.chat_body import ChatRequest
from fastslow.tools.cli.answering.prompt_file import LineFields
from fastslow.tools.cli.app import LateCommand, app

JSON = [
    pytest.param(block.text, id=f"{named(page)}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "json"
]


@pytest.mark.parametrize("text", JSON)
def test_the_json_of_a_page_loads(text: str, tmp_path: Path) -> None:
    """Settings of a checkpoint with 8 groups, requests and lines of prompts."""
    record = json.loads(text)
    if "messages" in record:
        ChatRequest.model_validate(record)
    elif "prompt" in record:
        LineFields(**record)
    else:
        assert {*record} <= {"modes", "auto", "thinking_tags"}
        shutil.copytree(builtin_path("abacus"), tmp_path / "own")
        (tmp_path / "own" / "fastslow.json").write_text(text)
        assert {*record.get("modes", {})} <= {*load_modes(tmp_path / "own", RoutedUnits("groups", 8))}
        checkpoint_selector(tmp_path / "own")


def help_texts(command: Any) -> Iterator[str]:
    command = command.real() if isinstance(command, LateCommand) else command
    yield command.help or ""
    for part in getattr(command, "commands", {}).values():
        yield from help_texts(part)


def test_the_examples_of_help_texts_fit() -> None:
    lines = [
        line.strip()
        for text in help_texts(typer.main.get_command(app))
        for line in text.splitlines()
        if re.match(r" +fastslow [a-z-]+( [^ ]|$)", line)
    ]
    assert len(lines) > 40
    for line in lines:
        check_ours(shlex.split(re.sub(" [<>] .*", "", line))[1:])


ENDING = ("generate", "modes", "inspect", "doctor", "models", "corpus", "keys", "plan")
LARGE = "path/to|Qwen|[A-Z]{4}|--device|--parallel|--head|--auto|pangu"


def runnable(page: Path) -> list[list[str]]:
    """Those that end by themselves, with a built-in model and files that are there or that they make."""
    found = [arguments for _, words in commands(page) if (arguments := ours(words))]
    whole = (a for a in found if a[0] in ENDING and (len(a) > 1 or a[0] in ("doctor", "models")))
    return [a for a in whole if not re.search(LARGE, " ".join(a)) and a != ["keys", "add"]]


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=named)
def test_the_commands_of_a_page_run(page: Path) -> None:
    for name in ("prompts.jsonl", "mine.jsonl", "today.jsonl"):
        turns = [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}]
        Path(name).write_text(json.dumps({"messages": turns if name == "today.jsonl" else turns[:1]}))
    Path("prompts.txt").write_text("2 + 2 =\n")
    for arguments in runnable(page):
        done = call(*arguments)
        assert done.code == 0, (arguments, done)

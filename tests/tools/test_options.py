"""Options of commands are made from models: names, types, defaults, help, and what is given back."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from fastslow.engine.params import Speculation
from fastslow.tools.cli.app import COMMANDS, LateCommand, app
from fastslow.tools.cli.drafting.bench import MeasureOptions
from fastslow.tools.cli.options import OptionFields, expand_options
from fastslow.tools.job_options import field

DRAFTS = OptionFields("head", "width", panel="Drafts", defaults=False, model="draft_model")


class Inner(BaseModel):
    port: int = Field(default=8000, ge=0, description="where it listens")
    share: bool = Field(default=True, description="share it")


class Outer(BaseModel):
    target: str = field("usual", "a model", names="TARGET --target")
    file: Path | None = Field(default=None, description="a file", json_schema_extra={"panel": "Files"})
    out: str | Path = Field(default="x", description="default: x", json_schema_extra={"names": ["--out", "-o"]})
    names: tuple[str, ...] = Field(default=(), description="auto, or names")
    kind: Literal["one", "two"] = Field(default="one", description="which")
    loud: bool = Field(default=False, description="be loud")
    inner: Inner = Inner()
    drafts: Annotated[Speculation, DRAFTS] = Speculation()


def invoked(*arguments: str) -> tuple[Any, str, BaseException | None]:
    """Return what a command of these options gets, what is printed, and what it raises."""
    seen: list[Any] = []

    def command(options: Outer) -> None:
        """Does nothing."""
        seen.append(options)

    command.__annotations__["options"] = Outer  # a local function cannot look it up by name
    one = typer.Typer()
    one.command()(expand_options(command))
    result = CliRunner().invoke(one, list(arguments), env={"COLUMNS": "200"})
    return (seen[0] if seen else None), result.output, result.exception


def test_what_is_given_is_set_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, _ = invoked()
    assert made == Outer() and made.model_fields_set <= {"inner", "drafts"}
    assert not made.inner.model_fields_set and not made.drafts.model_fields_set
    monkeypatch.setenv("HOME", "/home/me")
    made, _, _ = invoked(
        *("--file=~/a", "-o", "~/b", "--names", "a", "--names", "b", "--kind", "two", "--loud"),
        *("--port", "0", "--no-share", "--width", "2", "--draft-model=~/m"),
    )
    assert (made.file, made.out, made.names) == (Path("/home/me/a"), "/home/me/b", ("a", "b"))
    assert (made.kind, made.loud, made.inner) == ("two", True, Inner(port=0, share=False))
    assert made.drafts == Speculation(model="/home/me/m", width=2)
    assert made.drafts.model_fields_set == {"model", "width"}


def test_values_by_position_or_name_and_help_with_panels_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for given in (("~/m",), ("--target=~/m",), ("--loud", "~/m")):
        made, _, _ = invoked(*given)
        assert made.target == "/home/me/m", given
    _, _, error = invoked("a", "--target", "a")
    assert str(error) == "TARGET and --target are two: give one of them"
    _, shown, _ = invoked("--help")
    assert "[TARGET]" in shown and "--target" in shown
    _, shown, _ = invoked("--help")
    words = " ".join(shown.split())
    for part in (
        *("Where it listens; default 8000.", "[one|two] Which; default one.", "auto, or names."),
        *("Default: x.", "Files", "Drafts", "--share", "--no-share", "Be loud."),
    ):
        assert part in words, part
    assert "width of" not in words and "default 1" not in words, "a preset says what holds"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert f"fastslow {name}" in result.output
    command = next(c for n, c in typer.main.get_command(app).commands.items() if n == name)  # type: ignore[attr-defined]
    assert isinstance(command, LateCommand) and command.real().name == name


BY_NAME = ("generate", "chat", "plan", "bench", "tune", "train-draft", "corpus build", "corpus add")


@pytest.mark.parametrize("name", (*BY_NAME, "serve", "inspect", "modes"))
def test_every_command_takes_its_model_by_position(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "120"})
    usage = next(line for line in result.output.splitlines() if "Usage:" in line)
    assert re.search(r"\b(MODEL|TARGET)[]}]?$", usage.strip().upper()), usage
    if name in BY_NAME:
        assert re.search("--(model|target) ", result.output)


def test_a_draft_model_is_for_each_drafter_that_names_it() -> None:
    drafters, _ = MeasureOptions(drafters="ngram,suffix|model", draft_model="m").drafting()
    assert [setting.model for setting in drafters] == [None, "m"]

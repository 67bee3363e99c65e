"""The options of `fastslow serve` about operations and limits, as the command line gives them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import typer

from fastslow.serve.api.key_file import add_key
from fastslow.serve.api.settings import EFFORTS, ServerSettings
from fastslow.tools.cli.app import app
from fastslow.tools.cli.operation_options import OperationOptions
from fastslow.tools.cli.serve_options import ServeOptions

NAMES = {field.name for field in dataclasses.fields(OperationOptions)}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No keys of this machine's user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("FASTSLOW_KEYS", "FASTSLOW_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def given(*arguments: str) -> OperationOptions:
    command: Any = typer.main.get_command(app)
    context = command.commands["serve"].make_context("serve", ["model", *arguments])
    return OperationOptions(**{k: v for k, v in context.params.items() if k in NAMES})


def test_nothing_given_is_nothing_set() -> None:
    settings = given().settings("127.0.0.1", "tiny")
    assert settings.keys is None and settings.observers == ()
    assert list(settings.allow_origins) == [] and list(settings.allow_hosts) == []
    assert settings.hosts is not None and set(settings.hosts) == {"localhost", "127.0.0.1", "::1"}
    assert not settings.log_texts and not settings.metrics_by_key and settings.concurrent is None


def test_what_is_given_is_set(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = add_key(path, "bot")
    options = given(
        *(
            "--api-keys",
            str(path),
            "--api-key",
            "one-of-some-length",
            "--api-key",
            "two-of-some-length",
        ),
        *("--allow-origin", "https://a", "--allow-origin", "https://b", "--allow-host", "c"),
        *("--max-requests", "3", "--log-texts", "--metrics-by-key"),
    )
    settings = options.settings("0.0.0.0", "tiny")
    assert settings.keys is not None
    for one, name in (
        (key, "bot"),
        ("one-of-some-length", "default"),
        ("two-of-some-length", "default"),
    ):
        found = settings.keys.find(one)
        assert found is not None and found.name == name
    assert settings.keys.find("<factory>") is None
    assert settings.allow_origins == ["https://a", "https://b"] and settings.concurrent == 3
    assert settings.hosts is not None and "c" in settings.hosts
    assert settings.log_texts and settings.metrics_by_key


def test_an_open_server_that_others_reach_is_warned_of(logged: list[str]) -> None:
    given().settings("127.0.0.1", "tiny")
    given().settings(None, "tiny")
    assert logged == []
    given().settings("0.0.0.0", "tiny")
    assert len(logged) == 1 and "OPEN" in logged[0]


def limits(path: Path, text: str, **options: Any) -> ServerSettings:
    path.write_text(text)
    return ServeOptions(settings=path, **options).server_settings()


def test_a_file_has_limits_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    assert ServeOptions().server_settings() == ServerSettings()
    assert ServeOptions(default_mode="fast").server_settings().default_mode == "fast"
    text = '{"temperature": 0.3, "aliases": ["gpt-4o"], "default_mode": "auto", "efforts": {"low": "fast"}}'
    found = limits(path, text)
    assert (found.temperature, found.aliases, found.default_mode) == (0.3, ("gpt-4o",), "auto")
    assert found.efforts == {**EFFORTS, "low": "fast"}
    assert limits(path, text, default_mode="fast").default_mode == "fast"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "limits.json"),
        ('{"temprature": 1}', "limits.json: field 'temprature' is unknown; did you mean"),
        ('{"n": 1000}', "limits.json: n=1000 must be less than or equal to 128"),
        ('{"efforts": {"lo": "fast"}}', "effort 'lo' is unknown; did you mean 'low'"),
    ],
)
def test_a_wrong_file_of_limits_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        limits(tmp_path / "limits.json", text)
    assert "\n" not in str(told.value)


def test_a_missing_file_of_limits_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--settings .*none.json does not exist"):
        ServeOptions(settings=tmp_path / "none.json").server_settings()

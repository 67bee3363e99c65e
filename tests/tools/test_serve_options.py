"""The options of `fastslow serve`, as the command line gives them: one `ServerConfig`."""

from pathlib import Path
from typing import Any

import pytest
import typer
from fake_engine import FakeEngine
from fastapi.testclient import TestClient
from refusals import refused

from fastslow.engine.text.switches import EFFORTS
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.app import create_app
from fastslow.serve.engines.settings import EngineSettings
from fastslow.tools.cli.app import app
from fastslow.tools.cli.options import filled, options_of
from fastslow.tools.cli.serve_options import CONFIG, SETTINGS, Place, complete
from fastslow.tools.cli.serve_several import check_several


def given(*arguments: str) -> tuple[ServerConfig, Place]:
    """Return what the command gets from these arguments."""
    command: Any = typer.main.get_command(app)
    params = command.commands["serve"].make_context("serve", list(arguments)).params
    place = filled(Place, params)
    limits = filled(ServerSettings, params, SETTINGS)
    return complete(filled(ServerConfig, params, CONFIG), limits, place), place


def test_nothing_given_is_nothing_set() -> None:
    config, place = given()
    assert config == ServerConfig() and place == Place()
    assert config.served_name == "smollm2-moge" and config.settings == ServerSettings()
    assert EngineSettings.of(config).options == {"remember": "by_key"}


def test_what_is_given_is_set(tmp_path: Path) -> None:
    config, place = given(
        *("a/model.gguf", "--kv-spill", "2GiB", "--no-prefix-caching", "--remember", "all"),
        *("--api-keys", str(tmp_path / "keys.json"), "--max-running", "3", "--keep-thoughts"),
        *("--api-key", "one-of-some-length", "--api-key", "two-of-some-length"),
        *("--allow-origin", "https://a", "--allow-origin", "https://b", "--allow-host", "c"),
        *("--max-requests", "3", "--log-texts", "--metrics-by-key", "--log-format", "json"),
    )
    options = {"kv_spill": "2GiB", "prefix_caching": False, "remember": True, "max_running": 3}
    engine = EngineSettings.of(config)
    assert engine.options == options and engine.name == "model.gguf"
    assert place.api_key == ("one-of-some-length", "two-of-some-length")
    assert config.api_keys == tmp_path / "keys.json" and config.max_requests == 3
    assert config.allow_origins == ("https://a", "https://b") and config.allow_hosts == ("c",)
    assert config.log_texts and config.metrics_by_key and config.settings.keep_thoughts
    assert config.log_environment["FASTSLOW_LOG_FORMAT"] == "json"


def test_a_file_has_the_same_fields_as_the_command_line() -> None:
    config = ServerConfig(
        model="m",
        name="n",
        options={"remember": "by_key", "thinking_tags": ["<a>", "</a>"], "kv_memory": 0.5},  # type: ignore[arg-type]
        settings={"default_mode": "fast"},  # type: ignore[arg-type]
        api_keys="keys.json",  # type: ignore[arg-type]
        allow_origins=["https://a"],  # type: ignore[arg-type]
        warm=[{"name": "w", "prompt": [], "mode": "fast"}],  # type: ignore[arg-type]
    )
    options = {"remember": "by_key", "thinking_tags": ["<a>", "</a>"], "kv_memory": 0.5}
    engine = EngineSettings.of(config)
    assert engine.options == options and engine.name == "n"
    assert config.settings.default_mode == "fast"
    assert [one["name"] for one in engine.warm] == ["w"]
    assert ServerConfig(**config.model_dump(mode="json", exclude_unset=True)) == config
    refused(r"field 'log_text' is unknown; did you mean 'log_texts'", ServerConfig, log_text=True)
    refused(r"warm\[0\]", ServerConfig, warm=[{"name": "w"}])


def test_a_new_setting_is_one_field() -> None:
    """Every field but four is an option, and the YAML and `create_app` take the same object."""
    names = {option.name for option in options_of(ServerConfig, CONFIG)}
    files = {"warm", "settings"}  # which the command reads from files
    assert set(ServerConfig.model_fields) - names == files | {"options"}
    with TestClient(create_app(FakeEngine(), ServerConfig(max_requests=0))) as client:
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 429


def limits(path: Path, text: str, **options: Any) -> ServerSettings:
    path.write_text(text)
    return complete(ServerConfig(), ServerSettings(**options), Place(settings=path)).settings


def test_a_file_has_limits_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    assert given("--default-mode", "fast")[0].settings.default_mode == "fast"
    text = '{"temperature": 0.3, "aliases": ["gpt-4o"], "default_mode": "auto", "efforts": {"low": "fast"}}'
    found = limits(path, text)
    assert (found.temperature, found.aliases, found.default_mode) == (0.3, ("gpt-4o",), "auto")
    assert found.efforts == {**EFFORTS, "low": "fast"}
    assert limits(path, text, default_mode="fast").default_mode == "fast"


@pytest.mark.parametrize(("text", "said"), [
    ("{", "limits.json"),
    ('{"temprature": 1}', "limits.json: field 'temprature' is unknown; did you mean"),
    ('{"efforts": {"lo": "fast"}}', "effort 'lo' is unknown; did you mean 'low'"),
])  # fmt: skip
def test_a_wrong_file_of_limits_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    refused(said, limits, tmp_path / "limits.json", text)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--settings", "none.json"], "--settings none.json does not exist"),
    (["--warm-mode", "fast"], "^--warm-mode is for --warm"),
    (["--remember", "some"], "remember='some' must be"),
])  # fmt: skip
def test_what_does_not_fit_is_told(arguments: list[str], said: str) -> None:
    refused(said, given, *arguments)


@pytest.mark.parametrize("name", ["replicas", "address", "replica_resources"])
def test_an_empty_value_is_no_default(name: str) -> None:
    fields: dict[str, Any] = {"replicas": "2", "address": None, name: ""}
    address = fields.pop("address")
    refused(f"^--{name.replace('_', '-')} is empty: ", check_several, ServerConfig(**fields), address, False)


def test_addresses() -> None:
    config, wrong = ServerConfig(replicas="2"), ("nowhere", "http://x:1", "ray://x:1", ":1")
    for text in ("auto", "127.0.0.1:6379", "[::1]:1", "a-node:65535"):
        check_several(config, text, False)
    for text in (*wrong, "x:0", "x:65536", "x:1a", "x:²"):
        refused("^--address=.* must be auto or HOST:PORT", check_several, config, text, False)

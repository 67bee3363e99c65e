"""The first things that a person types: the command alone, its completion, `fastslow doctor`."""

import json
from http.client import BadStatusLine

import pytest
from cli_tools import run
from huggingface_hub import constants

from fastslow.engine.backends.cpu import library
from fastslow.engine.host.files import cache_folder
from fastslow.tools.cli import doctor


def said_by(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    return run(*arguments), capfd.readouterr().out


def test_the_command_alone_says_what_to_do_next(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = said_by(capfd)
    assert code == 0 and len(said.splitlines()) == 5
    assert all(f"fastslow {name}" in said for name in ("chat", "serve", "doctor", "--help"))


@pytest.mark.parametrize(
    ("typed", "offered"), [("do", "doctor"), ("generate --max-t", "--max-tokens"), ("corpus bu", "build")]
)
def test_a_shell_completes_commands_and_options(
    typed: str, offered: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = f"fastslow {typed}"
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_FASTSLOW_COMPLETE", "complete_bash")
    _, said = said_by(capfd)
    assert offered in said.split()


def test_it_says_what_models_run_with_and_marks_what_makes_it_slow(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = said_by(capfd, "doctor", "--json")
    found = json.loads(said)
    assert code == 0 and all(one["fine"] for one in found.values())
    assert found["kernels"]["level"] == library.level() and found["bandwidth"]["gb_per_second"] > 0.1
    assert found["cache"]["folder"] == str(cache_folder())
    _, said = said_by(capfd, "doctor")
    assert [line.split()[1] for line in said.splitlines()] == list(found)
    monkeypatch.setenv(library.VARIABLE, "off")
    code, said = said_by(capfd, "doctor")
    marked = [line for line in said.splitlines() if line.startswith("!!")]
    assert code == 1 and len(marked) == 1 and "FASTSLOW_KERNELS=off" in marked[0]


@pytest.mark.parametrize(("place", "says"), [("hub.local", "not reached"), ("", "must be one of")])
def test_a_hub_that_is_none(
    place: str, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setenv("FASTSLOW_HUB", "" if place else "odd")
    _, said = said_by(capfd, "doctor")
    assert says in said and "serve" in said.splitlines()[-2]


def test_a_hub_whose_cache_is_another_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("os.access", lambda *_: False)
    (found,) = doctor._hub()
    assert not found.fine and "cannot be written to: point HF_HOME" in found.said


def test_a_hub_that_speaks_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object, **__: object) -> None:
        raise BadStatusLine("SSH-2.0")

    monkeypatch.setattr("urllib.request.urlopen", other)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:secret@hub")
    (found,) = doctor._hub()
    assert "http://hub not reached (SSH-2.0)" in found.said

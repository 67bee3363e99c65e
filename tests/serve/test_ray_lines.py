"""What Ray's processes say, on standard error and in the log of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger
from ray._private import worker
from ray._private.ray_logging import global_worker_stdstream_dispatcher as lines

from fastslow.serve.ray.worker_lines import NAME, show_lines


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records of our own log, with their levels."""
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    found: list[str] = []
    logger.enable("fastslow")
    sink = logger.add(found.append, format="{level} {message}", level="DEBUG")
    show_lines()
    yield found
    logger.remove(sink)
    lines.remove_handler(NAME)


def test_lines_of_replicas_come_out_as_they_are(
    said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines.emit({"actor_name": "ServeReplica:fastslow:engine", "lines": ["one line"]})
    lines.emit({"actor_name": "ServeController", "lines": ["of Ray"]})
    assert capsys.readouterr().err == "one line\n"
    assert said == ["DEBUG Ray, ServeController: of Ray\n"]


def test_pages_of_text_about_a_process_that_ended_are_for_the_debug_level(
    said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    worker.print_to_stdstream(
        {"lines": ["A worker died"], "pid": "raylet", "is_err": False}, ignore_prefix=False
    )
    assert capsys.readouterr() == ("", "") and said == ["DEBUG Ray, raylet: A worker died\n"]

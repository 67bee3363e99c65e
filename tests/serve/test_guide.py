"""The page on serving, as a newcomer follows it: its commands start a real server, and its blocks run in order.

A tiny checkpoint has the name of the page's model, and the server a free port. Pip is not run; what it is asked
for must be there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from checkpoints import write_moge
from pages import Block, blocks
from serve_tools import TEMPLATE, VOCAB
from tokenizers_tiny import write_bpe

from fastslow.serve.listen import listen

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "serving.md"
MODEL, ADDRESS = "smollm2-moge", "127.0.0.1:8000"  # those of the page
PATIENCE = 120  # seconds
SAID = {  # what the curl commands of the page bring
    "/v1/chat/completions": '"object":"chat.completion"',
    "/health": '{"status":"ok"}',
    "/ready": '{"ready":true,"why":""}',
    "/version": f'"model":"{MODEL}"',
    "/metrics": "vllm:spec_decode_num_accepted_tokens_total",
    "/v1/models": f'"id":"{MODEL}:fast"',
}


class Desk:
    """A newcomer's terminals, in one folder."""

    def __init__(self, folder: Path, model: str, options: list[str]) -> None:
        self.folder, self.model, self.options = folder, model, options
        self.space: dict[str, Any] = {"__name__": "guide"}
        self.ran = 0
        self._server: subprocess.Popen[bytes] | None = None
        with listen("127.0.0.1", 0) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        programs = folder / "bin"
        programs.mkdir()
        _write_program(programs / "fastslow", f'exec {sys.executable} -m fastslow "$@"')
        _write_program(programs / "pip", 'for word; do echo "$word" >> pip.txt; done')
        (folder / ".curlrc").write_text("fail-with-body\n")
        paths = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._env = os.environ | {
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
            "PYTHONPATH": paths,
            "CURL_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),  # no keys of this machine's user
        }
        for name in ("FASTSLOW_KEYS", "FASTSLOW_API_KEY"):
            self._env.pop(name, None)

    def run(self, block: Block) -> None:
        """Run one block, wherever the page's reader would."""
        text = block.text.replace(ADDRESS, self.address)
        if block.language == "python":
            self._run_python(text, f"{PAGE.name}:{block.line}")
        elif text.startswith("fastslow serve "):
            self._serve(shlex.split(text))
        else:
            assert block.language == "bash", f"line {block.line}: nothing runs {block.language!r}"
            self._run_shell(text)
        self.ran += 1

    def end(self) -> None:
        """Ctrl-C, which lets the server end in good order."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            assert self._server.wait(PATIENCE) == 0
            self._server = None

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def _serve(self, words: list[str]) -> None:
        assert words[:3] == ["fastslow", "serve", MODEL]
        self.end()
        port = self.address.partition(":")[2]
        named = ["--served-model-name", MODEL, "--port", port, *self.options]
        command = ["fastslow", "serve", self.model, *words[3:], *named]
        self._server = subprocess.Popen(command, env=self._env, cwd=self.folder)
        end = time.monotonic() + PATIENCE
        while not self._is_ready():
            assert self._server.poll() is None and time.monotonic() < end
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _run_shell(self, text: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            env=self._env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        for path in re.findall(r"^curl.*?//[\d.:]+(/\S*)", text, re.MULTILINE):
            assert SAID[path] in done.stdout, done.stdout

    def _run_python(self, text: str, name: str) -> None:
        with redirect_stdout(StringIO()) as printed:
            exec(compile(text, name, "exec"), self.space)  # noqa: S102 (our own text)
        assert printed.getvalue().strip() or "assert " in text, f"{name} says nothing"


def _write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder."""
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def follow(desk: Desk) -> None:
    """All of the page; then the last server ends in good order."""
    try:
        for block in blocks(PAGE):
            desk.run(block)
        desk.end()
    finally:
        desk.kill()
    assert desk.ran == len(re.findall("^```", PAGE.read_text("utf-8"), re.MULTILINE)) / 2
    assert desk.ran > 15


def test_the_page_can_be_followed(folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    write_bpe(model, TEMPLATE, VOCAB)
    size: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32}
    write_moge(model, vocab=VOCAB, max_position_embeddings=4096, **size)
    desk = Desk(folder, str(model), ["--kv-memory", "32MiB"])
    follow(desk)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = (folder / "pip.txt").read_text().split()
    assert asked == ["install", ".[serve]", "openai", "anthropic"]
    assert "serve" in project["optional-dependencies"]
    assert "fs-" not in (folder / "serve.log").read_text()  # no key is in the log


@pytest.mark.slow
def test_the_page_can_be_followed_with_its_own_model(folder: Path) -> None:
    desk = Desk(folder, MODEL, [])
    follow(desk)
    assert desk.space["sold"] in ("bread", "roll", "cake")  # by the tool's call

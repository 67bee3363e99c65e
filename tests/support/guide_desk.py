"""A newcomer who follows a page of the guide: its commands start real servers, and its blocks run in order.

The server gets a free port. Pip is not run; what it is asked for is kept in pip.txt.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

from fastslow.serve.http.listen import listen

MODEL, ADDRESS = "smollm2-moge", "127.0.0.1:8000"  # those of the pages
PATIENCE = 300  # seconds


class Desk:
    """A newcomer's terminals, in one folder.

    Args:
        page: what is followed.
        check: given a shell block and what it printed.
        folder: the current one.
        model: stands in for the page's.
        options: of each server, beside those of the page.
    """

    def __init__(
        self, page: Path, check: Callable[[str, str], None], folder: Path, model: str, options: list[str]
    ) -> None:
        self.page, self.check = page, check
        self.folder, self.model, self.options = folder, model, options
        self.space: dict[str, Any] = {"__name__": "guide"}
        self.ran = 0
        self._server: subprocess.Popen[bytes] | None = None
        with listen("127.0.0.1", 0) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        programs = folder / "bin"
        programs.mkdir()
        write_program(programs / "fastslow", f'exec {sys.executable} -m fastslow "$@"')
        write_program(programs / "pip", 'for word; do echo "$word" >> pip.txt; done')
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
            self._run_python(text, f"{self.page.name}:{block.line}")
        elif text.startswith("fastslow serve "):
            self.serve(shlex.split(text))
        else:
            assert block.language == "bash", f"line {block.line}: nothing runs {block.language!r}"
            self._run_shell(text)
        self.ran += 1

    def follow(self) -> None:
        """All of the page; then the last server ends in good order."""
        try:
            for block in blocks(self.page):
                self.run(block)
            self.end()
        finally:
            self.kill()

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

    def serve(self, words: list[str]) -> None:
        """End the server that runs, and start one with the words of the page."""
        assert words[:3] == ["fastslow", "serve", MODEL]
        self.end()
        named = ["--served-model-name", MODEL, "--port", self.address.partition(":")[2], *self.options]
        command = ["fastslow", "serve", self.model, *words[3:], *named]
        self._server = subprocess.Popen(command, env=self._env, cwd=self.folder)
        end = time.monotonic() + PATIENCE
        while not self.is_ready():
            assert self._server.poll() is None and time.monotonic() < end
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Tell whether the server that was started may be asked."""
        try:
            return httpx.get(f"http://{self.address}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _run_shell(self, text: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], env=self._env, cwd=self.folder, capture_output=True,
            text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        self.check(text, done.stdout)

    def _run_python(self, text: str, name: str) -> None:
        with redirect_stdout(StringIO()) as printed:
            exec(compile(text, name, "exec"), self.space)  # noqa: S102 (our own text)
        assert printed.getvalue().strip() or "assert " in text, f"{name} says nothing"


def write_model(folder: Path) -> Path:
    """A tiny checkpoint that stands in for that of the pages."""
    write_bpe(folder, TEMPLATE, VOCAB)
    size: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32}
    return write_moge(folder, vocab=VOCAB, max_position_embeddings=4096, **size)


def needs_programs(*names: str) -> None:
    """Skips where one is not installed."""
    for program in names:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)

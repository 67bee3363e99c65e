"""The page on more than one engine, as a newcomer follows it: on this machine, and then on three hosts.

The hosts are network namespaces, which need root. A tiny checkpoint has the name of the page's model.
"""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from guide_desk import MODEL, PATIENCE, Desk, needs_programs, write_model, write_program
from network import Host, Network, why_not
from pages import Block, blocks
from serve_engines import until
from serve_tools import events_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "cluster.md"
SUPPORT = ROOT / "tests" / "support"
FIRST = "10.0.0.1"  # on the page
HOSTS = {  # by how blocks begin
    "# on the first machine": ["first"], "# on each other machine": ["other"], "# on any machine": ["client"],
    "# on each machine": ["other", "first"],
}  # fmt: skip
QUICK = {'"max_tokens": 300': '"max_tokens": 3000', "sleep 3": "sleep 0.4"}  # as a tiny model is
KV = ["--kv-memory", "32MiB"]
SMALL = "--object-store-memory=80000000"  # of each node
OWN_PROCESSES = """
import sys
from pathlib import Path
from ray_engines import descendants
words = [(pid, Path(f"/proc/{pid}/cmdline").read_text()) for pid in descendants(int(sys.argv[1]))]
found = [pid for pid, command in words if "-m\\0fastslow" in command and sys.argv[-1] in command]
print(found[-1])
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


class OneMachine(Desk):
    """Ends only its descendants where the page ends some by their name."""

    def __init__(self, folder: Path, model: Path) -> None:
        super().__init__(PAGE, self.note, folder, str(model), KV)
        self.printed = ""
        self.expected = 0
        path = f"PYTHONPATH={SUPPORT}:$PYTHONPATH"
        (folder / "own.py").write_text(OWN_PROCESSES)
        find = f'{path} exec {sys.executable} {folder / "own.py"} {os.getpid()} "$@"'
        write_program(folder / "bin" / "pgrep", find)

    def run(self, block: Block) -> None:
        if not place_of(block):
            text = block.text
            for slow, quick in QUICK.items():
                text = text.replace(slow, quick)
            super().run(block._replace(text=text))

    def note(self, text: str, printed: str) -> None:
        """Keep what commands say."""
        self.printed += printed

    def is_ready(self) -> bool:
        """A newcomer reads on meanwhile, until all replicas are there."""
        try:
            stats = httpx.get(f"http://{self.address}/v1/stats").json()
        except httpx.TransportError:
            return False
        return len(stats.get("replicas", ())) >= self.expected

    def serve(self, words: list[str]) -> None:
        self.expected = int(words[words.index("--replicas") + 1].partition(":")[0])
        super().serve(words)


def place_of(block: Block) -> list[str]:
    """The machines that a block is for; none: the reader's own."""
    line = block.text.partition("\n")[0]
    return next((hosts for words, hosts in HOSTS.items() if line.startswith(words)), [])


def test_the_page_can_be_followed_on_one_machine(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_programs("bash", "curl")
    monkeypatch.chdir(tmp_path)
    desk = OneMachine(tmp_path, model)
    desk.follow()
    assert desk.ran == sum(not place_of(block) for block in blocks(PAGE)) > 7
    assert (tmp_path / "pip.txt").read_text().split() == ["install", ".[ray]"]
    printed = desk.printed
    assert '"object":"chat.completion"' in printed and "fastslow:engine_up" in printed
    assert printed.count('"completion_tokens":3000') == 4  # of a replica that was killed, too
    assert "fastslow:given_up_answers_total" not in printed  # what is 0 is not there
    moved = re.findall(r"fastslow:(?:continued_answers|retried_asks)_total\S* ([\d.]+)", printed)
    assert sum(map(float, moved)) >= 1, printed
    stories = [told_in(path.read_text()) for path in sorted(tmp_path.glob("story?.txt"))]
    assert len(stories) == 4 and len(set(stories)) == 1


def told_in(stream: str) -> str:
    """The text of an answer."""
    choices = [choice for event in events_of(stream) for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


class Machines:
    """Three hosts, and what is typed there."""

    def __init__(self, hosts: dict[str, Host], folder: Path, model: Path) -> None:
        self.hosts, self.model = hosts, model
        self.printed = ""
        self.ran = 0
        self._serving: subprocess.Popen[bytes] | None = None
        programs = folder / "bin"
        programs.mkdir()
        modules = {"ray": "ray.scripts.scripts", "serve": "ray.serve.scripts"}
        for name, module in {"fastslow": "fastslow", **modules}.items():
            write_program(programs / name, f'exec {sys.executable} -m {module} "$@"')
        self._env = [
            f"PATH={programs}:{os.environ['PATH']}",
            f"PYTHONPATH={os.pathsep.join(filter(None, [os.getcwd(), os.environ.get('PYTHONPATH')]))}",
        ]
        for name in hosts:
            self._home(name).mkdir()
        config = (ROOT / "deploy" / "ray-serve.yaml").read_text()
        for wrong, right in {
            f"model: {MODEL}": f"model: {model}\n      name: {MODEL}",
            "max_running": "kv_memory: 32MiB\n        max_running",
            "127.0.0.1": "0.0.0.0",
        }.items():
            assert wrong in config
            config = config.replace(wrong, right)
        (self._home("first") / "deploy").mkdir()
        (self._home("first") / "deploy" / "ray-serve.yaml").write_text(config)

    def run(self, block: Block) -> None:
        """Run one block where it says."""
        text = block.text.replace(FIRST, self.hosts["first"].address)
        text = text.replace("ray start", f"ray start --num-cpus=2 {SMALL}")
        served = f"{self.model} --served-model-name {MODEL} {shlex.join(KV)}"
        text = text.replace(f"serve {MODEL}", f"serve {served}")
        *before, last = text.replace("\\\n", " ").splitlines()
        if last == "ray stop":
            self.end()
        for name in place_of(block):
            if last.startswith(("fastslow serve ", "serve run ")):
                self._type(name, "\n".join(before))
                self._serve(name, last)
            else:
                key = self._home("first") / "bot.key"
                own = f"export KEY={key.read_text().strip()}\n" if "$KEY" in text else ""
                self._type(name, own + text)
        if "get-auth-token" in text:  # what the page tells the reader to copy
            for name in ("other", "client"):
                shutil.copytree(self._home("first") / ".ray", self._home(name) / ".ray")
        self.ran += 1

    def answers(self) -> bool:
        """Tell whether the server says that it is ready, to another host."""
        url = f"http://{self.hosts['first'].address}:8000/ready"
        asking = self._bash("client", f"curl -sf -m 5 {url}")
        return self.hosts["client"].start(asking, subprocess.DEVNULL).wait(PATIENCE) == 0

    def end(self) -> None:
        """Ctrl-C to the server that runs, and wait for its end."""
        if self._serving is not None:
            self._type("first", "pkill -INT -f '[f]astslow serve|[r]ay.serve.scripts run'")
            self._serving.wait(PATIENCE)
            self._serving = None

    def _serve(self, name: str, command: str) -> None:
        self.end()
        with (self._home(name) / "serve.txt").open("ab") as output:
            self._serving = self.hosts[name].start(self._bash(name, f"exec {command}"), output)
        asyncio.run(until(self.answers, PATIENCE))

    def _type(self, name: str, text: str) -> None:
        """Run a text in a host's shell. Its background jobs may run on: nothing waits for the end of its output."""
        path = self._home(name) / "typed.txt"
        with path.open("wb") as output:
            command = self._bash(name, f"set -euo pipefail\n{text}")
            code = self.hosts[name].start(command, output).wait(PATIENCE)
        self.printed += path.read_text()
        assert code == 0, f"{text}\n{path.read_text()}"

    def _bash(self, name: str, text: str) -> list[str]:
        home = self._home(name)
        own = ["env", "--unset=RAY_AUTH_MODE", "--unset=RAY_AUTH_TOKEN"]
        own += [f"--chdir={home}", f"HOME={home}", *self._env]
        return [*own, "bash", "-c", text]

    def _home(self, name: str) -> Path:
        return self.hosts[name].folder / "home"


def test_the_page_can_be_followed_on_several_machines(model: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    needs_programs("bash", "curl", "pkill")
    with TemporaryDirectory(prefix="fs") as folder, Network(["first", "other", "client"], Path(folder)) as network:
        asyncio.run(until(lambda: all(host.up for host in network.hosts.values()), PATIENCE))
        machines = Machines(network.hosts, Path(folder), model)
        for block in blocks(PAGE):
            if place_of(block):
                machines.run(block)
        assert machines.ran == sum(bool(place_of(block)) for block in blocks(PAGE)) > 5
        assert '"object":"chat.completion"' in machines.printed

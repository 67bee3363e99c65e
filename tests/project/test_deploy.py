"""Files in deploy/ fit the project: paths, commands, options, names of metrics."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped,unused-ignore]
from guide_desk import write_program

from fastslow.serve.http.middleware import OPEN_PATHS
from fastslow.serve.observe.metric_table import TABLE
from fastslow.tools.cli.app import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "fastslow.service"
SOCKET = DEPLOY / "systemd" / "fastslow.service.d" / "unix-socket.conf"
DRAIN = 30
SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with what follows them; lines that go on are joined."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(words[0], words[1]) for words in found]


def of(kind: str) -> list[str]:
    return [rest for word, rest in instructions(DEPLOY / "Dockerfile") if word == kind]


def serve_options() -> set[str]:
    """The options of `fastslow serve`."""
    command: Any = typer.main.get_command(app)
    return {name for option in command.commands["serve"].real().params for name in option.opts}


def check_serve(words: list[str]) -> None:
    """All that is given to `fastslow serve` exists."""
    options = [word for word in words if word.startswith("--")]
    assert options and set(options) <= serve_options()
    assert not words[0].startswith("-")  # the model


def test_what_is_copied_is_there_and_is_not_ignored() -> None:
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = set()
    for line in of("COPY"):
        words = line.split()
        if not any(word.startswith("--from=") for word in words):
            copied |= {w.rstrip("/") for w in words[:-1] if not w.startswith("--")}
    assert copied == let_in and [name for name in copied if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = project["tool"]["setuptools"]["package-dir"].values()
    files = (project["project"]["readme"], *project["project"]["license-files"])
    assert {"fastslow", "pyproject.toml", "setup.py", *folders, *files} <= copied


def test_the_images_commands_parse_and_it_runs_as_nobody_special() -> None:
    for line in of("RUN"):
        subprocess.run(["bash", "-n", "-c", line], check=True)
    assert any(line.startswith("FASTSLOW_BUILD_LEVELS=all pip install ") for line in of("RUN"))
    (health,) = of("HEALTHCHECK")
    python, option, code = json.loads(health.partition("CMD ")[2])
    assert (python, option) == ("python", "-c")
    ast.parse(code)
    assert "/health" in code and "/health" in OPEN_PATHS
    check_serve(json.loads(of("CMD")[0]))
    last = (DEPLOY / "Dockerfile").read_text("utf-8").rpartition("\nFROM ")[2]
    assert "\nUSER fastslow\n" in last and "apt-get" not in last
    assert last.index("\nUSER fastslow\n") < last.index("\nENTRYPOINT")


def test_compose() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]
    server = services["server"]
    check_serve(server["command"])
    assert (DEPLOY / server["build"]["context"]).resolve() == ROOT
    assert (ROOT / server["build"]["dockerfile"]).is_file()
    assert server["command"][-2:] == ["--drain-seconds", str(DRAIN)]
    assert int(server["stop_grace_period"].removesuffix("s")) > DRAIN
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("./") and source != "./keys":
                assert (DEPLOY / source).exists(), source
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scrape[0]["static_configs"][0]["targets"] == ["server:8000"] and "server" in services
    provisioning = DEPLOY / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text("utf-8"))
    assert "prometheus" in services and [x["url"] for x in sources["datasources"]] == ["http://prometheus:9090"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/fastslow.yaml").read_text("utf-8"))["providers"]
    targets = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/fastslow.json" in targets


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "fastslow.json").read_text("utf-8"))
    return found


def test_the_dashboard_shows_metrics_of_the_table() -> None:
    known = {m.name + suffix: m for m in TABLE for suffix in SUFFIXES[m.type]}
    shown = set()
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            names = set(re.findall(r"\b(?:vllm|fastslow):\w+", expression))
            assert names and names <= set(known), (panel["title"], names - set(known))
            shown |= {known[name].name for name in names}
            labels = {label for name in names for label in known[name].labels}
            for group in re.findall(r"by \(([^)]*)\)", expression):
                used = {label.strip() for label in group.split(",")} - {"le"}
                assert used <= labels, (panel["title"], used)
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, panel["title"]
            assert expression.count("(") == expression.count(")")
    wanted = {"vllm:kv_cache_usage_perc", "vllm:prefix_cache_hits", "fastslow:accepted_tokens"}
    wanted |= {"vllm:spec_decode_num_accepted_tokens_per_pos", "vllm:num_requests_waiting"}
    assert wanted <= shown


def started(path: Path) -> list[str]:
    """The arguments of `fastslow serve` that a unit starts."""
    lines = re.findall(r"^ExecStart=(\S.*)$", path.read_text("utf-8"), re.MULTILINE)
    command, verb, *words = shlex.split(lines[-1])
    assert command.endswith("/fastslow") and verb == "serve"
    return words


@pytest.mark.parametrize("path", [UNIT, SOCKET], ids=["port", "socket"])
def test_units_start_what_there_is(path: Path) -> None:
    words = started(path)
    check_serve(words)
    assert words[words.index("--drain-seconds") + 1] == str(DRAIN)
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text("utf-8"), re.MULTILINE)
    assert int(stop) > DRAIN


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """With a command that exists: the verifier looks for it."""
    truth = str(shutil.which("true"))
    unit = tmp_path / "fastslow.service"
    inside = tmp_path / "fastslow.service.d"
    inside.mkdir()
    for path, copy in ((UNIT, unit), (SOCKET, inside / SOCKET.name)):
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={truth}", path.read_text("utf-8"), flags=re.MULTILINE)
        copy.write_text(text, "utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "fastslow" in line] == [], done.stderr


def test_nginx_passes_events_on_and_keeps_metrics() -> None:
    text = (DEPLOY / "nginx" / "fastslow.conf").read_text("utf-8")
    bare = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert "proxy_buffering off;" in bare and "proxy_http_version 1.1;" in bare
    socket = started(SOCKET)[started(SOCKET).index("--unix-socket") + 1]
    assert f"server unix:{socket};" in bare and re.search(r"location = /metrics \{\s*deny all;", bare)


def test_only_its_owner_reads_the_token_that_the_cluster_page_makes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guide" / "cluster.md").read_text("utf-8")
    (line,) = [line for line in page.splitlines() if "get-auth-token" in line]
    write_program(tmp_path / "ray", "mkdir -p ~/.ray && echo secret > ~/.ray/auth_token && echo secret")
    token = tmp_path / ".ray" / "auth_token"
    space = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    for there in (False, True):
        if there:
            token.chmod(0o644)  # of an earlier start
        done = subprocess.run(["sh", "-c", line], env=space, capture_output=True, check=True)
        assert done.stdout == b"" and token.stat().st_mode & 0o777 == 0o600

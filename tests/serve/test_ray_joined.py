"""A cluster that is there already: joined by its address, and by `serve run`."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]
from processes_served import address, command, free_port, program, wait_for, wait_ready
from ray_engines import StartedCluster, living, started_cluster

pytestmark = pytest.mark.slow
PATIENCE = 180  # seconds
BODY = {"model": "tiny", "prompt": "one two", "max_tokens": 12, "mode": "fast", "temperature": 0}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[StartedCluster]:
    with started_cluster() as cluster:
        yield cluster


def text_of(url: str) -> str:
    answer = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
    assert answer.status_code == 200
    return str(answer.json()["choices"][0]["text"])


def answers(url: str) -> bool:
    try:
        return text_of(url) != ""
    except (httpx.HTTPError, AssertionError):
        return False


def test_by_its_address(cluster: StartedCluster, folder: Path) -> None:
    options: list[Any] = ["--port", 0, "--replicas", 1, "--kv-memory", "16MiB"]
    options += ["--served-model-name", "tiny", "--address", cluster.address]
    with command(folder, *options, environment=cluster.environment) as server:
        url = address(server)
        wait_ready(url)
        assert text_of(url) and len(cluster.engines()) == 1
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    wait_for(lambda: not cluster.engines())  # it took its replicas along
    assert living([cluster.pid]), "the cluster stays"


def test_serve_run_of_the_file_that_is_there(cluster: StartedCluster, folder: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "ray-serve.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    arguments = config["applications"][0]["args"]
    arguments |= {"model": str(folder), "name": "tiny"}
    arguments["options"] |= {"kv_memory": "16MiB"}
    (file := tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ("-m", "ray.serve.scripts", "run", file)
    own = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    quiet: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    with program(*words, environment=own, **quiet) as server:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(url))
        assert text_of(url) == text_of(url) and httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        refused = httpx.post(f"{url}/v1/completions", json=BODY | {"max_tokens": 0})
        assert refused.status_code == 400 and "max_tokens" in refused.text
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE)
    wait_for(lambda: not cluster.engines())

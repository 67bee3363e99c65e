"""A cluster that is there already: joined by its address, and by `serve run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]
from processes_served import address, command, free_port, wait_ready
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
    """What is answered, once something answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            response = httpx.post(f"{url}/v1/completions", json=BODY, timeout=60)
            if response.status_code == 200:
                return str(response.json()["choices"][0]["text"])
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise AssertionError("nothing answers")


def soon(true: Any) -> bool:
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        time.sleep(0.2)
    return bool(true())


def test_by_its_address(cluster: StartedCluster, folder: Path) -> None:
    options: list[Any] = ["--port", 0, "--replicas", 1, "--kv-memory", "16MiB"]
    options += ["--served-model-name", "tiny", "--address", cluster.address]
    with command(folder, *options, environment=cluster.environment) as server:
        url = address(server)
        wait_ready(url)
        assert text_of(url) and len(cluster.engines()) == 1
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    assert soon(lambda: not cluster.engines()), "it took its replicas along"
    assert living([cluster.pid]), "the cluster stays"


@contextmanager
def serve_run(cluster: StartedCluster, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "serve"), "run", str(file)],
        env={**os.environ, **cluster.environment, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def test_serve_run_of_the_file_that_is_there(
    cluster: StartedCluster, folder: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "ray-serve.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    arguments = config["applications"][0]["args"]
    arguments |= {"model": str(folder), "name": "tiny"}
    arguments["options"] |= {"kv_memory": "16MiB"}
    (file := tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with serve_run(cluster, file):
        url = f"http://127.0.0.1:{port}"
        assert text_of(url) == text_of(url)
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        refused = httpx.post(f"{url}/v1/completions", json=BODY | {"max_tokens": 0})
        assert refused.status_code == 400 and "max_tokens" in refused.text
    assert soon(lambda: not cluster.engines())

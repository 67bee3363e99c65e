"""Starting a cluster of this machine, and what is said of one that cannot be joined."""

from __future__ import annotations

import asyncio
import os

import pytest
import ray
from ray._private import ray_constants

from fastslow.serve.ray.cluster import Cluster, first_line

REFUSED = """Failed to connect to GCS. Last connection error: Traceback (most recent call last):
  File "node.py", line 996, in _init_gcs_client
ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or incorrect.
"""


def test_one_sentence_is_told_of_an_error() -> None:
    assert first_line(RuntimeError("one\ntwo")) == "one"
    assert first_line(RuntimeError("why:\nmuch\n  because")) == "why: because"
    assert first_line(ConnectionError()) == "ConnectionError"


def test_a_cluster_that_asks_for_its_token_is_told_of() -> None:
    try:
        raise ConnectionError("Failed to connect to Ray cluster") from RuntimeError(REFUSED)
    except ConnectionError as error:
        told = first_line(error)
    assert "token" in told and "RAY_AUTH_MODE=token" in told and "Traceback" not in told


@pytest.mark.parametrize("fails", [False, True])
def test_what_keeps_a_cluster_on_this_machine_ends_with_it(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that had a local cluster may join another one, and so may the programs that it starts."""
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    seen: list[tuple[str | None, bool]] = []

    def now() -> tuple[str | None, bool]:
        switch = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
        return switch, ray_constants.ENABLE_RAY_CLUSTER

    def init(**options: object) -> None:
        seen.append(now())
        if fails:
            raise RuntimeError("no port is free")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: seen.append(now()))

    async def main() -> None:
        cluster = Cluster(cpus=1)
        if fails:
            with pytest.raises(RuntimeError, match="cannot start a Ray cluster: no port is free"):
                await cluster.open()
            assert now() == (None, True)
        else:
            await cluster.open()
            assert now() == (None, False)
        await cluster.close()

    asyncio.run(main())
    assert seen == [("0", False), (None, fails)] and now() == (None, True)

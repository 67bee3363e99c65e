"""Keeps a cluster that is started here to this machine: Ray's ports take pickles from whoever reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loguru import logger

LOOPBACK = "127.0.0.1"
# For the processes of a cluster that is to stay on this machine: Ray has this for macOS and Windows.
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def driver_on_loopback() -> Iterator[None]:
    """For this process while it has such a cluster. It may join another one later."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def replica_on_loopback() -> None:
    """For the port of this replica, which Ray Serve would open at all addresses of the machine; where the cluster
    has others than this machine, it does."""
    from ray.util import get_node_ip_address

    if get_node_ip_address() != LOOPBACK:
        return
    from ray.serve._private import replica

    if (add := getattr(replica, "add_port_to_grpc_server", None)) is None:
        logger.warning("this version of Ray opens a port of each replica at all addresses")
        return

    def add_on_loopback(server: object, address: str) -> object:
        return add(server, address.replace("[::]", LOOPBACK))

    replica.add_port_to_grpc_server = add_on_loopback

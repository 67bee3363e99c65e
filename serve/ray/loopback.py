"""Keeps a cluster that is started here to this machine: Ray's ports take pickles from whoever reaches them."""

from __future__ import annotations

import os

from loguru import logger

LOOPBACK = "127.0.0.1"


def cluster_on_loopback() -> None:
    """For the cluster that this process is about to start. Ray has this for macOS and Windows; its constant is
    changed, too, since it may be imported already."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


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

"""Several engines of one server, on Ray Serve. Nothing else of fastslow imports ray."""

from __future__ import annotations

import os

QUIET = {  # where the operator has not said otherwise; Ray reads it when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_SERVE_LOG_TO_STDERR": "0",  # what it says of itself is in its own log files
    # what still calls Ray when its cluster is left would join any other one that it finds
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_DEDUP_LOGS": "0",  # replicas may well say the same
    # an item of an answer takes half the processor time: no thread for routing, and no object in Ray's store
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

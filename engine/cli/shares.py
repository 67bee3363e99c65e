"""What each rank of a shared model would hold and send, for `fastslow inspect --parallel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.loader import DTYPES
from fastslow.engine.parallel.plan import Plan
from fastslow.engine.parallel.spec import Parallel

if TYPE_CHECKING:
    from rich.table import Table


def plan_of(config: ModelConfig, layout: str) -> Plan:
    """The plan of "ep=8,tp=1", in the checkpoint's own dtype. ValueError if it does not fit."""
    return Plan.of(config, Parallel.parse(layout), DTYPES[config.dtype or "float32"])


def shares_table(plan: Plan) -> Table:
    """A line a rank, and what a row of a layer costs in bytes sent."""
    from rich.table import Table

    name = str(plan.dtype).removeprefix("torch.")
    sent = format_bytes(_sent(plan))
    title = f"{plan.parallel} in {name}; a row of a layer sends {sent} between ranks"
    table = Table(
        "rank", "home", "heads", "KV heads", "groups", "weights", "KV per token", title=title
    )
    for share in plan.shares:
        place = share.place
        groups = f"{place.groups.start}-{place.groups.stop - 1}" if place.groups else "-"
        table.add_row(
            str(place.rank),
            str(place.home),
            str(place.heads),
            str(place.kv_heads),
            groups,
            format_bytes(share.weights),
            format_bytes(share.kv_per_token),
        )
    return table


def shares_record(plan: Plan) -> dict[str, Any]:
    """For programs: sizes in bytes."""
    return {
        "ep": plan.parallel.ep,
        "tp": plan.parallel.tp,
        "dp": plan.parallel.dp,
        "sent_per_row_and_layer": _sent(plan),
        "ranks": [
            {
                "rank": share.place.rank,
                "home": share.place.home,
                "heads": share.place.heads,
                "kv_heads": share.place.kv_heads,
                "groups": list(share.place.groups),
                "weights": share.weights,
                "kv_per_token": share.kv_per_token,
            }
            for share in plan.shares
        ],
    }


def _sent(plan: Plan) -> int:
    """Bytes that all ranks together send for one row of one layer."""
    return sum(plan.layer_traffic(1).values())

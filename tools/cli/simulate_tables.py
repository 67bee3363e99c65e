"""What `fastslow simulate run` prints: tables that fit into 80 columns, so that no figure is cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Column, Table

from fastslow.tools.simulate.figures import SHARES, ClusterFigures, ComparedFigure
from fastslow.tools.simulate.trace import ALL

NONE = "-"  # where there is no figure


def latency_table(found: Sequence[ClusterFigures]) -> Table:
    """A row for each mode of each simulation: how long requests wait, and whether they are in time."""
    titles = [f"first\ntoken\np{share} s" for share in SHARES]
    titles += [f"later\ntokens\np{share} ms" for share in SHARES]
    table = _table(("router", "replicas"), ("mode",), (*titles, "in\ntime"))
    for one in found:
        for mode, figures in one.modes.items():
            named = (one.router, str(one.replicas)) if mode == ALL else ("", "")
            table.add_row(
                *named,
                mode,
                *map(_number, figures.first),
                *([_number(1000 * value) for value in figures.each] or [NONE] * len(SHARES)),
                _percent(figures.in_time),
            )
        table.add_section()
    table.caption = "in time: first token and mean later token both within the latency target"
    return table


def cluster_table(found: Sequence[ClusterFigures]) -> Table:
    """A row for each simulation: what its replicas did, and what that cost."""
    titles = (
        "busy",
        "cache\nhits",
        "most\nhits",
        "pre-\nempted",
        "replica-\nhours",
        "for 1M\ntokens",
    )
    table = _table(("router", "replicas"), (), titles)
    for one in found:
        table.add_row(
            one.router,
            str(one.replicas),
            _percent(one.busy),
            _percent(one.modes[ALL].hit_rate),
            _percent(one.possible_hit_rate),
            str(one.preempted),
            _number(one.replica_hours),
            _number(one.hours_per_million),
        )
    table.caption = (
        "cache hits: prompt tokens found in a prefix cache; most hits: in one cache without a limit; "
        "preempted: requests that lost their pages for a while; "
        "for 1M tokens: replica-hours for a million answered tokens"
    )
    return table


def compared_table(compared: Sequence[ComparedFigure]) -> Table:
    """Simulated beside measured."""
    titles = ("", "measured\nms", "simulated\nms", "off")
    table = _table(("mode",), ("what",), titles)
    for one in compared:
        table.add_row(
            one.mode,
            one.what,
            f"p{one.percentile}",
            _number(1000 * one.measured),
            _number(1000 * one.simulated),
            f"{one.off:+.0%}",
        )
    return table


def _table(names: Sequence[str], folded: Sequence[str], figures: Sequence[str]) -> Table:
    """Columns of names, of names that may be long and wrap, and of figures, which never do."""
    table = Table(
        *(Column(title, no_wrap=True) for title in names),
        *folded,
        *(Column(title, justify="right", no_wrap=True) for title in figures),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
        collapse_padding=True,
    )
    for column in table.columns:
        column.vertical = "bottom"
    return table


def _number(value: float) -> str:
    """At most six characters, below a million: thousandths, or fewer digits where it is larger."""
    if value >= 1e6:
        return f"{value:.0e}"
    digits = 3 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"

"""What a replica says of itself, and what of it is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from routing_tools import report

from fastslow.serve.engines.routing.report import ReplicaReport, ReportReader


def test_it_goes_through_json() -> None:
    made = report(5.0, running={"fast": 2, "deep": 1}, waiting={"deep": 3}, deep=4, urgent=1)
    assert ReplicaReport.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert made.answers == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "a report of version 2; this router reads 1"),
        ({"version": None}, "a report of version None"),
        ({"deep": -1}, "`int` >= 0.*deep"),
        ({"deep": "many"}, "Expected `int`, got `str`.*deep"),
        ({"running": {"fast": 0.5}}, "running"),
        ({"running": {f"m{n}": 1 for n in range(66)}}, "length <= 65"),
        ({"queue_seconds": float("nan")}, "a damaged report"),
        ({"at": float("inf")}, "a damaged report"),
        ({"step_seconds": {"fast": float("inf")}}, "not finite"),
        ({"page_tokens": 0}, "page_tokens"),
    ],
)
def test_what_is_damaged_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReplicaReport.from_dict(report(5.0).to_dict() | change)


@pytest.mark.parametrize("values", [None, [], "report", 5])
def test_what_is_no_report_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="a report is an object"):
        ReplicaReport.from_dict(values)


def test_a_field_that_is_missing_is_named() -> None:
    values = report(5.0).to_dict()
    del values["pages"]
    with pytest.raises(ValueError, match="missing required field `pages`"):
        ReplicaReport.from_dict(values)


def test_what_was_read_of_a_replica_is_forgotten_with_it(logged: list[str]) -> None:
    reader = ReportReader()
    good, damaged = report(1.0).to_dict(), {"version": 7}
    assert reader.read("a", good) is not None and reader.read("a", good) is None
    assert reader.read("b", damaged) is None
    reader.keep(["a"])
    assert reader.read("a", good) is None
    reader.keep(["b"])
    reader.keep(["a", "b"])
    assert reader.read("a", good) is not None, "another replica of this name"
    assert reader.read("b", damaged) is None and len(logged) == 2

"""What is said of wrong options about several engines; none of it starts one."""

from __future__ import annotations

import pytest

from fastslow.tools.cli.replica_options import ReplicaOptions


@pytest.mark.parametrize("name", ["replicas", "address", "replica_resources", "router"])
def test_an_empty_value_is_no_default(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} is empty: "):
        ReplicaOptions(**{"replicas": "2", name: ""})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": "0"}, r"^replicas=0 must be from 1 to 10000$"),
        ({"replicas": "0:2"}, r"^replicas=0 must be from 1 to 10000$"),
        ({"replicas": "-1"}, r"^replicas='-1' must be a number such as 2, or a range such as 1:4$"),
        ({"replicas": "2:1"}, r"^replicas=2:1 must name the smaller number first$"),
        ({"replicas": "2", "replica_cpus": 0}, r"^replica_cpus=0 must be from 1 to 1024$"),
        ({"replicas": "1", "replica_cpus": 9999}, r"^replica_cpus=9999 must be from 1 to 1024$"),
        ({"replicas": "2", "router": "pow3"}, r"^router='pow3' is unknown; did you mean 'pow2'\?$"),
    ],
)
def test_what_does_not_fit_is_told(given: dict[str, object], said: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=said):
        ReplicaOptions(**given).settings({}, 30.0)  # type: ignore[arg-type]

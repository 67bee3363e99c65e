"""Experts per request in mixtures without groups: a latency target leaves some out."""

from pathlib import Path

import pytest
from checkpoints import write_family
from engine_tools import Ask, Bench
from pangu_v2_tools import write_moe

from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.latency_budget import RunEverything
from fastslow.engine.model.routed_units import RoutedUnits

CHOSEN = 4


class Timed(RunEverything):
    """A step takes a second for each expert of the request that runs most."""

    def seconds(self, groups: int | None, rows: int) -> float:
        return float(CHOSEN if groups is None else groups)


@pytest.mark.parametrize("kind", ["pangu v2", "qwen3_moe"])
@pytest.mark.parametrize(
    ("own", "target", "runs"), [(None, 9, None), (None, 3, 2), (None, 2, 1), (3, 2, 1), (None, 0.5, 0)]
)
def test_a_latency_target_leaves_out_experts(
    tmp_path: Path, kind: str, own: int | None, target: float, runs: int | None
) -> None:
    fields = {"num_hidden_layers": 2, "num_experts_per_tok": CHOSEN}
    if kind == "pangu v2":
        write_moe(tmp_path, vocab_size=24, num_mtp_layers=0, **fields)
    else:
        write_family(tmp_path, kind, vocab=24, **fields)
    bench = Bench(load_model(tmp_path, "float64", "cpu", False), {})
    plain = bench.core()
    core = EngineCore(bench.model, plain.kv, plain.drafter, cost_model=Timed())
    request = bench.request(0, Ask((3, 4, 5), groups=own), latency_target=target, may_cut_groups=True)
    core.add(request)
    left = None if runs is None else max(runs, RoutedUnits.of(bench.model.config).least)
    whole = CHOSEN if own is None else own
    assert request.groups == left
    told = [f"{left} of {whole} experts to keep {1000 * target:g} ms (lossy)"]
    assert request.log.notes == (told if left is not None else [])

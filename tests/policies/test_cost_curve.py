"""What steps take is measured, kept where that took long, and never believed from a broken file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write_dense

from fastslow.engine.backends.loader import load_model
from fastslow.engine.host.machine import Watch
from fastslow.engine.model.base import Model
from fastslow.policies.speculation import cost_curve
from fastslow.policies.speculation.cost_curve import step_seconds


@pytest.fixture(scope="module")
def model(tiny_dense: Path) -> Model:
    return load_model(tiny_dense)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of measurements, all of which are kept."""
    monkeypatch.setattr(cost_curve, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cost_curve, "WORTH_KEEPING", 0.0)
    return tmp_path / "step_times"


def test_what_is_kept_is_taken_for_the_same_model_only(model: Model, kept: Path) -> None:
    rows, seconds = step_seconds(model, None, "tiny")
    assert rows == cost_curve.ROWS and len(seconds) == len(rows) and min(seconds) > 0
    (path,) = kept.iterdir()
    path.write_text(json.dumps({"rows": [1, 2], "seconds": [0.5, 0.6]}), "utf-8")
    assert step_seconds(model, None, "tiny") == ((1, 2), (0.5, 0.6))
    assert step_seconds(model, None, "another")[0] == cost_curve.ROWS
    assert len(list(kept.iterdir())) == 2


def test_a_file_that_does_not_fit_is_measured_anew(model: Model, kept: Path) -> None:
    step_seconds(model, None, "tiny")
    (path,) = kept.iterdir()
    pairs = ["[2], [1]", "[1, 1], [1, 1]", "[1], [-1]", "[1, 2], [1]", "[1], [Infinity]"]
    pairs += ["[Infinity], [1]", "[1, 2], [1, NaN]"]
    texts = ['{"rows": ' + pair.replace("], [", '], "seconds": [') + "}" for pair in pairs]
    for text in ("", "[]", "{}", "[" * 100_000, *texts):
        path.write_text(text, "utf-8")
        assert step_seconds(model, None, "tiny")[0] == cost_curve.ROWS


def test_what_was_measured_on_a_busy_machine_is_not_kept(
    model: Model, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for others, files in ((0.4, 0), (0.02, 1)):
        monkeypatch.setattr(Watch, "others", lambda self, others=others: others)
        assert step_seconds(model, None, "tiny")[0] == cost_curve.ROWS
        assert len(list(kept.glob("*"))) == files


def test_a_short_context_measures_what_fits(tmp_path: Path, kept: Path) -> None:
    model = load_model(write_dense(tmp_path / "short", max_position_embeddings=66))
    assert step_seconds(model, None, "short")[0] == (1, 2)

"""Damaged checkpoints of every kind are refused in one sentence, or answer as plain decoding does."""

from pathlib import Path

import bases
import pytest
from kernel_tools import compiled
from run import Plan, fuzz, sanitized
from trial import Trial

FEW, MANY = 8, 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    bases.make_bases(folder / "bases")
    return folder


@pytest.mark.parametrize("name", sorted(bases.KINDS))
def test_what_is_damaged_works_before(folder: Path, name: str) -> None:
    """Else the fuzzer would see refusals only."""
    trial = Trial(folder / "bases" / name, bases.KINDS[name])
    trial.run()
    assert trial.answers >= 5 and not trial.refused


def test_a_few_damaged_checkpoints(folder: Path) -> None:
    outcome = fuzz(Plan(folder, range(FEW), seed=7, sanitize=False), processes=1)
    assert not outcome.findings and outcome.ran == FEW and outcome.refused > FEW // 2 and outcome.answered


@pytest.mark.slow
@compiled
def test_many_damaged_checkpoints_under_the_sanitizers(folder: Path) -> None:
    if sanitized() is None:
        pytest.skip("the compiler has no address sanitizer")
    outcome = fuzz(Plan(folder, range(MANY), seed=0))
    assert not outcome.findings and outcome.ran == MANY and outcome.answered > MANY // 10

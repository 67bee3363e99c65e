"""A selector and an escalation, fitted to made-up tasks whose answers are known."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from cli_tools import write_lines

from fastslow.engine.params import Escalation
from fastslow.tools.prompts import Conversation, Task, read_tasks
from fastslow.tools.tune.modes import ModesFound, find
from fastslow.tools.tune.selector import GradedAnswer, fit, given_up

SURE, UNSURE = math.log(0.97), math.log(0.3)


def made_up(count: int = 300, tells: float = 1.0, seed: int = 0) -> ModesFound:
    """Sums that fast gets right up to two digits and deep always; deep takes ten times as long. Fast is unsure where
    it is wrong. The hidden state is the digits, and noise. tells: how often the digits say the truth."""
    rng = random.Random(seed)
    tasks: list[Task] = []
    sides: dict[str, list[GradedAnswer]] = {"fast": [], "deep": []}
    hidden = np.random.default_rng(seed).normal(size=(count, 8))
    for n in range(count):
        digits = rng.choice((1, 2, 4, 5))
        hidden[n, 0] = digits
        number = rng.randrange(10 ** (digits - 1), 10**digits)
        easy = digits <= 2 if rng.random() < tells else rng.random() < 0.5
        asked: Conversation = [{"role": "user", "content": f"What is {number} + 1?"}]
        tasks.append(Task(asked, str(number + 1), "number"))
        sides["fast"].append(GradedAnswer(easy, 0.1, (SURE, SURE if easy else UNSURE, SURE, SURE), 4, first=0.01))
        sides["deep"].append(GradedAnswer(True, 1.0, tokens=40))
    return find(tasks, sides, {1: hidden}, keep=0.9)


def test_logistic_regression_finds_what_made_the_data_and_no_more() -> None:
    random_ = np.random.default_rng(0)
    x = random_.normal(3.0, 2.0, (4000, 3))
    logits = 0.8 * (x[:, 0] - 3) - 0.4 * (x[:, 2] - 3) - 0.5
    found = fit(x, random_.random(4000) < 1 / (1 + np.exp(-logits)))
    assert found.weights == pytest.approx([0.8, 0.0, -0.4], abs=0.08)
    assert found.bias == pytest.approx(-0.5, abs=0.12) and found.means == pytest.approx([3, 3, 3], abs=0.15)
    x = np.column_stack([np.arange(40.0), np.full(40, 7.0)])
    found = fit(x, np.arange(40) > 20)
    assert found.weights[1] == 0.0 and found.weights[0] > 0
    assert np.isfinite(fit(x, np.zeros(40, dtype=np.bool_)).bias), "one class only"


def test_who_is_given_up_and_when() -> None:
    answers = [GradedAnswer(True, 0.1, (SURE, x, SURE, SURE)) for x in (SURE, UNSURE)]
    goes, before = given_up(answers, Escalation(below=0.5, window=1, how="restart"))
    assert goes.tolist() == [False, True]
    assert before[1] == pytest.approx(0.05), "at the second of four tokens"
    assert not given_up(answers, Escalation(below=0.1, window=1, how="restart"))[0].any()


def test_found_keeps_the_gain_in_less_time_and_without_one_stays() -> None:
    found = made_up(300, tells=0.95)
    assert found.figures["fast"].accuracy < 0.6 and found.figures["deep"].accuracy == 1.0
    for way in ("auto", "escalating"):
        kept = found.kept(way)
        assert kept is not None and kept >= 0.85 and found.of_time(way) < 0.75
    assert found.escalation is not None and found.escalation.how == "restart"
    assert found.table().row_count == len(found.figures) == 5 and found.best_way in found.headline()
    assert found.settings()["measured_modes"]["grading"] == {"number": 300}
    found = made_up(100)
    sides = {"fast": [GradedAnswer(True, 0.1, (SURE,), 1)] * 100}
    sides["deep"] = [GradedAnswer(True, 1.0, tokens=9)] * 100
    found = find(found.tasks, sides, {0: np.eye(100)}, keep=0.9)
    assert found.figures["auto"].share_in_other_modes == 0.0 and found.escalation is None
    assert "is no better than" in found.headline() and found.table().row_count == 5


LINES: list[tuple[dict[str, object], str, str]] = [
    ({"prompt": "2+2?", "answer": "4"}, "number", "It is 4."),
    ({"prompt": "2+2?", "answer": 4}, "number", "3 or rather 4"),
    ({"question": "A sum", "answer": "So 7+5 = 12\n#### 1,200"}, "number", "That makes 1200."),
    ({"prompt": "Capital?", "answer": "Paris"}, "contains", "it is PARIS, of course"),
    ({"prompt": "x", "answer": "yes", "grading": "exact"}, "exact", " Yes. "),
    ({"prompt": "x", "answer": "-3"}, "number", "−3"),
]


@pytest.mark.parametrize(("line", "grading", "right"), LINES)
def test_grading(line: dict[str, object], grading: str, right: str, tmp_path: Path) -> None:
    (task,) = read_tasks(write_lines(tmp_path / "tasks.jsonl", line, ""))
    assert task.grading == grading and task.right(right) and not task.right("I do not know: 99999 zebras, no")


BAD = [
    ('{"prompt": "x"}', "line 1: answer must be"),
    ('{"prompt": "x", "answer": ""}', "line 1: answer must be"),
    ('{"prompt": "x", "answer": "y", "grading": "fair"}', "grading='fair' must be one of"),
    ('{"prompt": "x", "answer": "y", "grading": "number"}', "no number to grade by"),
    ('{"answer": "y"}', "none of the fields"),
]


@pytest.mark.parametrize(("line", "says"), BAD)
def test_bad_tasks_are_refused(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        read_tasks(write_lines(tmp_path / "tasks.jsonl", line))

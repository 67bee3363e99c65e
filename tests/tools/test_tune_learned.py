"""A learned auto, fitted to made-up answers whose chances are known."""

import numpy as np
import pytest
import torch

from fastslow.policies.mode_router import PromptFacts
from fastslow.tools.tune.learned import Learned, fit_learned, learn
from fastslow.tools.tune.selector import AnswersByMode

BETWEEN = "fast", "brief", "deep"
HIDDEN = 12
TOKENS = np.array([3.0, 20.0, 60.0])


def made_up(count: int = 1200, seed: int = 0) -> tuple[np.ndarray, AnswersByMode, np.ndarray]:
    """Hidden states; fast is right where the first number is small, brief where the second one is, deep nearly always;
    thoughts are longer where the third one is large. And the chances."""
    draw = np.random.default_rng(seed)
    hidden = draw.normal(2.0, 3.0, (count, HIDDEN))
    chances = 1 / (1 + np.exp(-np.stack([2 - hidden[:, 0], 2 - hidden[:, 1], np.full(count, 3.0)], 1)))
    tokens = TOKENS + np.outer(hidden[:, 2], (0.0, 1.0, 4.0))
    right = draw.random((count, 3)) < chances
    return hidden, AnswersByMode(right, tokens, tokens / 100, np.full(count, 0.02)), chances


@pytest.fixture(scope="module")
def learned() -> Learned:
    hidden, answers, _ = made_up()
    return learn(hidden, answers, BETWEEN, 1, 0.9)


def test_chances_and_tokens_are_found_again() -> None:
    hidden, answers, _ = made_up()
    router = fit_learned(hidden, answers, BETWEEN, 1)
    others, unseen, chances = made_up(seed=5)
    said, tokens = router.outlook(others)
    assert np.abs(said - chances).mean() < 0.04 and np.abs(tokens - unseen.tokens).max() < 1.0
    place = router.judge(PromptFacts(""))
    for row in others[:20]:
        taken, why = place(torch.tensor(row, dtype=torch.float32))
        assert taken == router.outlook(row)[0].argmax() and why.startswith(f"{BETWEEN[taken]}: ")


def test_it_keeps_the_gain_with_fewer_tokens_and_says_how_sure_it_is(learned: Learned) -> None:
    _, answers, _ = made_up()
    fast, deep = (answers.right[:, place].mean() for place in (0, 2))
    assert learned.figures.accuracy >= fast + 0.85 * (deep - fast)
    assert learned.figures.tokens < 0.7 * answers.tokens[:, 2].mean()
    assert learned.miscalibrated < 0.03 and learned.router.cost > 0


def test_what_a_report_holds_of_time_and_hidden_states(learned: Learned) -> None:
    """Nobody is told what his own fit has seen."""
    _, answers, _ = made_up(300)
    noise = np.random.default_rng(2).normal(size=(300, 200))
    deceived = learn(noise, answers, BETWEEN, 1, 0.9)
    assert deceived.loss > 1.2 * learned.loss and deceived.miscalibrated < 0.06
    _, answers, _ = made_up(50)
    stays, goes = answers.of(np.zeros(50, dtype=int)), answers.of(np.full(50, 2))
    assert stays.seconds == pytest.approx(answers.seconds[:, 0].mean()) and not stays.share_in_other_modes
    assert goes.seconds == pytest.approx(answers.seconds[:, 2].mean() + 0.02)
    assert goes.tokens == pytest.approx(answers.tokens[:, 2].mean())

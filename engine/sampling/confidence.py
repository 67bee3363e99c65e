"""Confidence in the latest tokens and a prompt's probe, by which a request may change its mode; a thought's probe."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from fastslow.engine.params import Escalation

if TYPE_CHECKING:
    import torch


class Confidence:
    """The running confidence of one answer: the geometric mean of the probabilities that the model
    gave to its last `window` tokens, before bias, penalties and temperature.

    It depends on committed tokens only, one by one: accepted tokens are cut after the one at which the
    confidence falls, so a draft changes nothing. `to_the_end`: the confidence may also fall where an
    answer ends before its window is full.
    """

    def __init__(self, settings: Escalation, to_the_end: bool = False) -> None:
        self.settings = settings
        self.fell = False
        self.tokens = 0  # looked at
        self._least = math.log(settings.below) if settings.below > 0 else -math.inf
        self._latest: deque[float] = deque(maxlen=settings.window)
        self._to_the_end = to_the_end
        self._over = False

    @property
    def value(self) -> float:
        """In 0..1; 1 before the first token."""
        return math.exp(_mean(self._latest)) if self._latest else 1.0

    def __str__(self) -> str:
        count, below = len(self._latest), self.settings.below
        return f"confidence {self.value:.2f} < {below:g} over {count} token{'s' * (count != 1)}"

    @property
    def watching(self) -> bool:
        """True while it may still fall."""
        return not self.fell and not self._over and not self._passed(self.tokens)

    def keeps(self, logprobs: Sequence[float]) -> int:
        """Count the next tokens that are kept, up to the one at which the confidence falls."""
        latest = deque(self._latest, self._latest.maxlen)
        for count, logprob in enumerate(logprobs, 1):
            if self._passed(self.tokens + count - 1):
                break
            latest.append(logprob)
            if self._below(latest):
                return count
        return len(logprobs)

    def take(self, logprobs: Sequence[float], last: bool) -> None:
        """These tokens are committed; `last`: the answer ended with them."""
        for logprob in logprobs:
            if not self.watching:
                return
            self._latest.append(logprob)
            self.tokens += 1
            self.fell = self._below(self._latest) and (not last or self._to_the_end)
        if last and self._to_the_end and self.watching:
            self.fell = bool(self._latest) and _mean(self._latest) < self._least
        self._over = last

    def _passed(self, tokens: int) -> bool:
        return self.settings.within is not None and tokens >= self.settings.within

    def _below(self, latest: deque[float]) -> bool:
        return len(latest) == latest.maxlen and _mean(latest) < self._least


class PromptProbe:
    """Probe of a prompt: it picks one of several modes by the output [hidden] of a layer at the prompt's end. It stands
    where `Confidence` does. judge: gives the place of the mode, 0 = the one that runs, and why."""

    tokens = 0  # of the answer, looked at

    def __init__(
        self, layer: int, hidden: int, judge: Callable[[torch.Tensor], tuple[int, str]]
    ) -> None:
        self.layer, self._hidden, self._judge = layer, hidden, judge
        self.watching, self.fell = True, False
        self.taken, self._why = 0, ""

    def __str__(self) -> str:
        return self._why

    def check(self, layers: int, hidden: int) -> None:
        """ValueError: the model has other sizes."""
        if self.layer >= layers or self._hidden != hidden:
            raise ValueError(
                f"auto looks at layer {self.layer}, of {self._hidden} numbers; this model has {layers} layers of "
                f"{hidden}: fit it again with `fastslow tune --modes`"
            )

    def see(self, hidden_H: torch.Tensor) -> None:
        """Decide by the hidden state; `take` applies the decision."""
        self.taken, self._why = self._judge(hidden_H)

    def take(self, logprobs: Sequence[float], last: bool) -> None:
        """The first tokens are committed."""
        self.watching, self.fell = False, self.taken > 0


class AnswerProbe:
    """Early exit of a thought: stops it once its answer is stable. At intervals the probe closes the thought and
    decodes the answer greedily from the raw logits, up to an end token. The answer is settled after `times` equal
    probes in a row, if each of its tokens has at least the probability `sure`. An empty answer never settles.

    A probe runs as extra rows of a step, after the text's last token; they are discarded. The previous answer is their
    draft: an equal answer takes one step, a different one takes a step for each token after the first difference. The
    result depends on the text alone.

    Probing in intervals: Fu et al. 2024, arXiv 2412.20993. Equal answers in a row: Liu and Wang 2025, arXiv
    2506.02536. Confidence of the answer: arXiv 2509.07820.

    start: tokens behind the thought before those that are compared. tokens: most of these. times: equal answers in a
    row. sure: least probability of each of their tokens. ends: tokens that end an answer.
    """

    def __init__(
        self, start: Sequence[int], tokens: int, times: int, sure: float, ends: Collection[int]
    ) -> None:
        self.settled, self.sure = False, sure
        self.answer: list[int] = []  # of the latest question
        self.draft: list[int] = []  # what it answers this time, as far as is known or guessed
        self._start, self._tokens, self._times, self._ends = list(start), tokens, times, ends
        self._same = 0

    @property
    def rows(self) -> list[int]:
        """The tokens that the next step runs. Wanted are the likeliest ones after its last `draft + 1`."""
        return [*self._start, *self.draft]

    @property
    def most(self) -> int:
        """Rows of a step, at most."""
        return len(self._start) + self._tokens - 1

    def take(self, likeliest: Sequence[int], logprobs: Sequence[float]) -> bool:
        """The likeliest tokens after these rows; -1 where logits are not finite. With `sure`, their log-probabilities.
        False: the same text is asked again."""
        answer, doubt = list[int](), False
        for place, token in enumerate(likeliest):
            answer.append(token)
            doubt = token < 0 or (self.sure > 0 and logprobs[place] < math.log(self.sure))
            if doubt or token in self._ends or len(answer) == self._tokens:
                break
            if self.draft[place : place + 1] != [token]:
                self.draft = answer
                return False
        some = not doubt and answer[0] not in self._ends
        self._same = (self._same + 1 if answer == self.answer else 1) if some else 0
        self.answer, self.draft = answer, answer[:-1]
        self.settled = self._same >= self._times
        return True


def _mean(values: deque[float]) -> float:
    return math.fsum(values) / len(values)

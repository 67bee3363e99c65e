"""How the thoughts of a request are counted and bounded, by its mode."""

from __future__ import annotations

from loguru import logger

from fastslow.engine.params import Mode, shown
from fastslow.engine.sampling.thinking import Thinking
from fastslow.input_processor import EncodedPrompt, InputProcessor
from fastslow.policies.thinking_budget import ThinkingBudget


class ThinkingRules:
    """Makes the `Thinking` of requests, and warns once of what a mode cannot have.

    Args:
        inputs: of the model: its tags.
        vocab_size: of the model.
    """

    def __init__(self, inputs: InputProcessor, vocab_size: int) -> None:
        self._inputs = inputs
        self._vocab_size = vocab_size
        self._warned: set[str] = set()

    def make(self, prompt: EncodedPrompt, room: int, mode: Mode) -> Thinking | None:
        """For an answer of at most `room` tokens; None for a model that does not think.

        A chat in a mode without thinking and without a budget has a budget of 0.

        Raises:
            ValueError: the mode's closing phrase holds tokens outside the vocabulary.
        """
        most, phrase = mode.thinking_budget, mode.closing or ""
        thoughts = self._inputs.analysis if prompt.tools else self._inputs.thoughts
        if thoughts is None:
            if most is not None or mode.early_exit:
                self._warn_once(
                    f"mode {mode.name!r} bounds its thoughts, but this model has no thinking tags: "
                    "name them in fastslow.json or as thinking_tags"
                )
            return None
        if most is None and self._inputs.silences(mode) and prompt.chat:
            most, phrase = 0, ""
        bounded = most is not None or mode.early_exit
        policy = ThinkingBudget(most, mode.thinking_soft, mode.early_exit) if bounded else None
        closing = thoughts.closing(phrase)
        if (outside := max(closing)) >= self._vocab_size:
            raise ValueError(
                f"closing={shown(phrase)} holds token id {outside}, outside the vocabulary"
            )
        if most and most + len(closing) >= room:
            self._warn_once(
                f"mode {mode.name!r}: thinking_budget={most} leaves no room for an answer within "
                f"max_tokens={room}"
            )
        return Thinking(thoughts, prompt.opened, len(prompt.tokens), policy, closing)

    def _warn_once(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            logger.warning(warning)

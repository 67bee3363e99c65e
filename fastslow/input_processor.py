"""Checks prompts and parameters, before anything runs in the engine."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastslow.call import Prompt
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import Mode, SamplingParams
from fastslow.engine.text.templates import ChatTemplate, Message, load_template
from fastslow.engine.text.thought import ThoughtTags, find_tags
from fastslow.engine.text.vocabulary import Tokenizer

BYTES = (bytes, bytearray, memoryview)  # sequences of int, but hardly meant as token ids


class EncodedPrompt(NamedTuple):
    """A prompt that was checked."""

    tokens: list[int]
    text: str | None  # None if token ids were given
    chat: bool = False  # made from messages: the answer does not continue a text
    opened: bool = False  # the answer begins inside a thought


class InputProcessor:
    """Turns prompts into token ids, and refuses what cannot run with one sentence.

    Args:
        folder: of the checkpoint: its chat template and thinking tags.
        config: of the target.
        tokenizer: None for a checkpoint without one; then only token ids are taken.
        context: most tokens of prompt plus answer.
        tags: the model's thinking tags, instead of the checkpoint's own.

    Attributes:
        tags: None = the model does not think.

    Raises:
        ValueError: the template or the tags do not fit.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        context: int,
        tags: tuple[str, str] | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.tags: ThoughtTags | None = None
        self._config = config
        self._template: ChatTemplate | None = None
        if tokenizer is not None:
            self._template = load_template(folder, tokenizer, config.architecture)
            self.tags = find_tags(folder, tokenizer, self._template, tags)

    def split(self, prompts: Any) -> tuple[list[Prompt], bool]:
        """The prompts of a call, and whether it was a single one."""
        if isinstance(prompts, str):
            return [prompts], True
        if not isinstance(prompts, Sequence) or isinstance(prompts, BYTES):
            kind = type(prompts).__name__
            raise ValueError(
                f"prompt must be text, token ids, messages or a list of them, not {kind}"
            )
        if not prompts:
            raise ValueError("prompt=[] is empty: give at least one token, message or prompt")
        if all(isinstance(part, Mapping) for part in prompts):
            return [prompts], True
        if all(isinstance(part, str | Sequence) for part in prompts):
            return list(prompts), False
        return [prompts], True

    def encode(self, prompt: Prompt, mode: Mode) -> EncodedPrompt:
        """Token ids of one prompt; messages go through the chat template.

        Where a chat must not think, but its template opens a thought, the prompt closes the thought.
        Texts and token ids are taken as they are.

        Raises:
            ValueError: empty, of the wrong type, ids outside the vocabulary, or too long.
        """
        encoded = self._encoded(prompt, mode)
        if not encoded.tokens:
            raise ValueError(f"prompt={prompt!r} is empty: give at least one token")
        if len(encoded.tokens) >= self.context:
            raise ValueError(
                f"prompt has {len(encoded.tokens)} tokens; with an answer of at least one it must "
                f"fit the context of {self.context}"
            )
        return encoded

    def check_params(self, params: SamplingParams) -> None:
        """Token ids must be in the model's vocabulary; stop strings need a tokenizer."""
        last = self._config.vocab_size - 1
        for field, ids in (
            ("logit_bias", params.logit_bias or {}),
            ("stop_token_ids", params.stop_token_ids),
        ):
            for token in ids:
                if not 0 <= token <= last:
                    raise ValueError(
                        f"{field}: token id {token} is outside the vocabulary 0..{last}"
                    )
        if params.stop_strings and self.tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none")

    def _encoded(self, prompt: Prompt, mode: Mode) -> EncodedPrompt:
        if isinstance(prompt, BYTES):
            raise ValueError(
                f"prompt must be text, token ids or messages, not {type(prompt).__name__}"
            )
        if isinstance(prompt, str):
            if not prompt:
                raise ValueError("prompt='' is empty: give at least one character")
            opened = self.tags is not None and self.tags.opened_by(prompt)
            return EncodedPrompt(self._need_tokenizer().encode(prompt), prompt, opened=opened)
        if all(isinstance(part, Mapping) for part in prompt) and prompt:
            return self._chat(list(prompt), mode)  # type: ignore[arg-type]
        ids = self._ids(prompt)
        return EncodedPrompt(ids, None, opened=self._ends_in_thought(ids))

    def _chat(self, messages: list[Message], mode: Mode) -> EncodedPrompt:
        tokenizer = self._need_tokenizer()
        assert self._template is not None  # loaded with the tokenizer
        text = self._template.render(messages, mode.thinking)
        opened = False
        if self.tags is not None:
            opened = self.tags.opened_by(text) or not self.tags.open
            if mode.thinking == "off" and opened:
                text, opened = self.tags.shut(text) if self.tags.open else text, False
        return EncodedPrompt(tokenizer.encode(text, self._template.add_special), text, True, opened)

    def _ends_in_thought(self, ids: Sequence[int]) -> bool:
        if self.tags is None or self.tokenizer is None:
            return False
        end = self.tokenizer.decode(ids[-len(self.tags.open) - 8 :], skip_special=False)
        return self.tags.opened_by(end)

    def _ids(self, prompt: Sequence[Any]) -> list[int]:
        last = self._config.vocab_size - 1
        ids: list[int] = []
        for place, part in enumerate(prompt):
            try:
                token = operator.index(part)
            except TypeError:
                token = -1
            if isinstance(part, bool) or not 0 <= token <= last:
                raise ValueError(f"prompt token {place} is {part!r}, not an id in 0..{last}")
            ids.append(token)
        return ids

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer: give the prompt as token ids")
        return self.tokenizer

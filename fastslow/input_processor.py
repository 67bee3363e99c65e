"""The door: what a caller gave is checked here, before anything in the engine is touched."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import Mode, SamplingParams
from fastslow.engine.text.templates import ChatTemplate, Message
from fastslow.engine.text.thought import ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer

Prompt = str | Sequence[int] | Sequence[Message]
BYTES = (bytes, bytearray, memoryview)  # sequences of int, but hardly meant as token ids


class EncodedPrompt(NamedTuple):
    """A prompt that passed."""

    tokens: list[int]
    text: str | None  # None if token ids were given
    chat: bool = False  # made from messages: the answer begins a text of its own
    opened: bool = False  # the answer begins inside a thought


class InputProcessor:
    """Turns prompts into token ids and refuses what cannot run, each with one sentence.

    Args:
        config: of the target.
        tokenizer: None for a checkpoint without one; then only token ids are taken.
        template: of the checkpoint's chat.
        tags: between which the model thinks, if it does.
        context: most tokens of prompt and answer together.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        tags: ThoughtTags | None,
        context: int,
    ) -> None:
        self._config = config
        self._tags = tags
        self._tokenizer = tokenizer
        self._template = template
        self.context = context

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

    def enter(self, prompt: Prompt, mode: Mode) -> EncodedPrompt:
        """Token ids of one prompt; messages go through the chat template.

        A chat that is not to think, and whose template opens a thought all the same, has it closed
        in the prompt: what follows is the answer. Texts and token ids are taken as they stand.

        Raises:
            ValueError: empty, of the wrong type, ids outside the vocabulary, or too long.
        """
        entry = self._entry(prompt, mode)
        if not entry.tokens:
            raise ValueError(f"prompt={prompt!r} is empty: give at least one token")
        if len(entry.tokens) >= self.context:
            raise ValueError(
                f"prompt has {len(entry.tokens)} tokens; with an answer of at least one it must "
                f"fit the context of {self.context}"
            )
        return entry

    def check_params(self, params: SamplingParams) -> None:
        """What only the model can tell: token ids in parameters must be in its vocabulary."""
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
        if params.stop and self._tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none")

    def _entry(self, prompt: Prompt, mode: Mode) -> EncodedPrompt:
        if isinstance(prompt, BYTES):
            raise ValueError(
                f"prompt must be text, token ids or messages, not {type(prompt).__name__}"
            )
        if isinstance(prompt, str):
            if not prompt:
                raise ValueError("prompt='' is empty: give at least one character")
            opened = self._tags is not None and self._tags.opened_by(prompt)
            return EncodedPrompt(self._need_tokenizer().encode(prompt), prompt, opened=opened)
        if all(isinstance(part, Mapping) for part in prompt) and prompt:
            return self._chat(list(prompt), mode)  # type: ignore[arg-type]
        ids = self._ids(prompt)
        return EncodedPrompt(ids, None, opened=self._ends_in_thought(ids))

    def _chat(self, messages: list[Message], mode: Mode) -> EncodedPrompt:
        tokenizer = self._need_tokenizer()
        assert self._template is not None  # loaded together with the tokenizer
        text = self._template.render(messages, mode.thinking)
        opened = False
        if self._tags is not None:
            opened = self._tags.opened_by(text) or not self._tags.open
            if mode.thinking == "off" and opened:
                text, opened = self._tags.shut(text) if self._tags.open else text, False
        return EncodedPrompt(tokenizer.encode(text, self._template.add_special), text, True, opened)

    def _ends_in_thought(self, ids: Sequence[int]) -> bool:
        if self._tags is None or self._tokenizer is None:
            return False
        end = self._tokenizer.decode(ids[-len(self._tags.open) - 8 :], skip_special=False)
        return self._tags.opened_by(end)

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
        if self._tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer: give the prompt as token ids")
        return self._tokenizer

"""Checks prompts and parameters, before anything runs in the engine."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

from loguru import logger

from fastslow.engine.core.request_parts import EncodedPrompt
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import Mode, SamplingParams, shown
from fastslow.engine.text.chat_parts import Marks, ThoughtsLost, chat_parts, kept_thoughts
from fastslow.engine.text.messages import Message, check_messages
from fastslow.engine.text.switches import ThinkingSwitch, nearest_level
from fastslow.engine.text.templates import PLAIN, ChatTemplate, load_template
from fastslow.engine.text.thought import (
    END,
    HARMONY,
    TagTokens,
    ThoughtTags,
    answer_tags,
    find_tags,
)
from fastslow.engine.text.tool_formats import GENERIC, ToolCalls
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.output import Completion, FastslowWarning
from fastslow.policies.turns import Turn, TurnCall, Turns
from fastslow.request.options import GenerateOptions, Prompt, model_sampling

MOST_SAID = 100  # things: clients may name any number of modes
BYTES = (bytes, bytearray, memoryview)  # sequences of int, but hardly meant as token ids


class SaidOnce:
    """Says each thing once, for one model."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, said: str) -> None:
        """A `FastslowWarning`, which the log has, too."""
        if self.note(said, "WARNING"):
            warnings.warn(said, FastslowWarning, stacklevel=2)

    def note(self, said: str, level: str = "INFO") -> bool:
        """A line of the log; whether it is the first time."""
        if said in self._said or len(self._said) >= MOST_SAID:
            return False
        self._said.add(said)
        logger.log(level, "{}", said)
        return True


class InputProcessor:
    """Turns prompts into token ids, and refuses what cannot run with one sentence. tokenizer: None for a checkpoint
    without one; then only token ids are taken. context: most tokens of prompt plus answer. tags: the model's thinking
    tags, instead of the checkpoint's own."""

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
        self.tags: ThoughtTags | None = None  # the model does not think
        self.around: tuple[str, ...] = ()  # tags that stand around answers
        self.thoughts: TagTokens | None = None
        self.analysis: TagTokens | None = None  # of thoughts that a call may follow
        self.switch = ThinkingSwitch()
        self.tool_calls = ToolCalls()
        self._config = config
        self._template: ChatTemplate | None = None
        self.said = SaidOnce()
        self._turns = Turns()
        self.sampling = model_sampling(folder)  # where calls and modes give none
        if tokenizer is not None:
            self._check_vocabulary(folder, tokenizer)
            self._template = load_template(folder, tokenizer, config.architecture)
            self.switch = self._template.switch
            self._set_tags(tokenizer, find_tags(folder, tokenizer, self._template, tags), tags)
            self.around = answer_tags(self._template.source)
            form = self._template.calls
            self.tool_calls = ToolCalls(form, form.tokens(tokenizer))
            self._marks = Marks(tokenizer, self.tags, form.marks)

    def silences(self, mode: Mode) -> bool:
        """Tell whether a chat in this mode has no thought: one that is opened is closed at once. It may have one
        where the model has levels of effort and none of them is "none"."""
        return mode.thinking == "off" and not self.switch.lessens

    @property
    def template_names(self) -> frozenset[str]:
        return frozenset() if self._template is None else self._template.names

    def advice(self, prompt: EncodedPrompt, answer: Completion) -> str | None:
        """Name the call to use where a chat model was given a plain text and ended at once."""
        chats = self._template is not None and self._template.source != PLAIN
        plain = prompt.text is not None and not prompt.chat
        empty = len(answer.token_ids) == 1 and answer.finish_reason == "stop"
        if not (chats and plain and empty):
            return None
        return "the answer to a plain text is empty: this model expects its chat template, so ask llm.chat(prompt)"

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
        single = not all(isinstance(part, str | Sequence) for part in prompts)
        return [prompts] if single else list(prompts), single

    def measure(self, prompt: Prompt) -> None:
        """Refuse a prompt that cannot fit, however it is tokenised, before time is spent on it."""
        if isinstance(prompt, str):
            self._measure_text(len(prompt))
        elif isinstance(prompt, Sequence) and prompt and not isinstance(prompt, BYTES):
            if not isinstance(prompt[0], Mapping):
                self._measure_tokens(len(prompt))
            elif len(prompt) > self.context:
                raise ValueError(
                    f"messages has {len(prompt)} entries; they must fit the context of {self.context}"
                )
            else:
                self._measure_text(sum(map(_characters, prompt)))

    def turn(self, options: GenerateOptions) -> Turn:
        """The turn that a call names."""
        return self._turns.of(options.share, options.memory_key, options.turn or "")

    def encode(
        self, prompt: Prompt, mode: Mode, options: GenerateOptions, turn: TurnCall | None = None
    ) -> EncodedPrompt:
        """Token ids of one prompt; messages go through the chat template, and texts and token ids are taken as
        they are. Where a chat must not think, but its template opens a thought, the prompt closes the thought."""
        spent, left = turn.before if turn else self._thought_in_turn(prompt), mode.turn_budget
        if left is not None:
            if turn and options.answered and options.answered.turn_left is not None:
                spent = left - options.answered.turn_left  # it began in another engine, perhaps
                turn.before, turn.resumed = spent, True
            left = max(0, left - spent)
        most = min((n for n in (mode.thinking_budget, left) if n is not None), default=None)
        encoded = self._encoded(prompt, mode, options, most)._replace(turn_spent=spent)
        if options.chat_template_kwargs and not encoded.chat:
            raise ValueError("chat_template_kwargs are for messages, and this prompt is none")
        if not encoded.tokens:
            raise ValueError(f"prompt={shown(prompt)} is empty: give at least one token")
        self._measure_tokens(len(encoded.tokens))
        return encoded

    def prediction(self, given: str | Sequence[SupportsIndex] | None) -> tuple[int, ...]:
        """The token ids of what an answer is predicted to be; none where nothing is."""
        if not isinstance(given, str | Sequence | None) or isinstance(given, BYTES):
            raise ValueError(f"prediction={shown(given)} must be text, token ids or None")
        if not given:
            return ()
        if isinstance(given, str):
            longest = self._need_tokenizer().longest
            if len(given) > longest * self.context:
                raise ValueError(
                    f"prediction has {len(given)} characters, which cannot fit the context of "
                    f"{self.context}: no token is longer than {longest}"
                )
            given = self._text_ids(self._marks.parts(given), add_special=False)
        if len(given) > self.context:
            raise ValueError(f"prediction has {len(given)} tokens; the context is {self.context}")
        return tuple(self._ids(given, "prediction"))

    def text(self, tokens: Sequence[SupportsIndex]) -> str:
        """The text of token ids, with that of special tokens."""
        return self._need_tokenizer().decode(self._ids(tokens), skip_special=False)

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
        if params.stop and self.tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none")

    def _check_vocabulary(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Added tokens may lie outside the model's vocabulary as long as nobody uses them."""
        size = self._config.vocab_size
        if tokenizer.own_size > size:
            raise ValueError(
                f"{folder}: the tokenizer's ids reach to {tokenizer.own_size - 1}, but the model's "
                f"vocab_size is {size}"
            )
        if tokenizer.vocab_size > size:
            logger.warning(
                "{}: the added tokens {} to {} lie outside the model's vocab_size of {}: prompts with "
                "them are refused",
                *(folder, size, tokenizer.vocab_size - 1, size),
            )

    def _set_tags(
        self, tokenizer: Tokenizer, tags: ThoughtTags | None, given: tuple[str, str] | None
    ) -> None:
        thoughts = None if tags is None else TagTokens(tokenizer, tags)
        last = self._config.vocab_size - 1
        if thoughts is not None and max(thoughts.close_ids) > last:
            said = f"thinking tag {thoughts.close.decode()!r} is a token outside the vocabulary 0..{last}"
            if given is not None:
                raise ValueError(said)
            logger.warning("{}: the model does not think", said)
            return
        self.tags, self.thoughts = tags, thoughts
        self.analysis = thoughts
        if tags == HARMONY:
            self.analysis = TagTokens(tokenizer, ThoughtTags(HARMONY.open, END))

    def _text_ids(self, parts: Sequence[str], add_special: bool = True) -> list[int]:
        tokenizer, last = self._need_tokenizer(), self._config.vocab_size - 1
        ids = tokenizer.encode_parts(parts, add_special)
        if max(ids, default=0) > last:
            wrong = next(token for token in ids if token > last)
            piece = tokenizer.piece(wrong)
            raise ValueError(
                f"the prompt holds {'a token' if piece is None else repr(piece)}, whose token id {wrong} is outside the "
                f"vocabulary 0..{last}: the model was not trained with it"
            )
        return ids

    def _encoded(
        self, prompt: Prompt, mode: Mode, options: GenerateOptions, most: int | None
    ) -> EncodedPrompt:
        """most: tokens of thought."""
        if isinstance(prompt, BYTES):
            raise ValueError(
                f"prompt must be text, token ids or messages, not {type(prompt).__name__}"
            )
        if isinstance(prompt, str):
            if not prompt:
                raise ValueError("prompt='' is empty: give at least one character")
            self._need_tokenizer()
            opened = self.tags is not None and self.tags.opened_by(prompt)
            parts = [prompt] if options.allow_special else self._marks.parts(prompt)
            if len(parts) > 1:
                self.said.warn(
                    "a prompt spells special tokens, which are read as text: give messages to chat, or "
                    "allow_special=True where the text is your own"
                )
            return EncodedPrompt(self._text_ids(parts), prompt, opened=opened)
        if all(isinstance(part, Mapping) for part in prompt) and prompt:
            return self._chat(list(prompt), mode, options, most)  # type: ignore[arg-type]
        ids = self._ids(prompt)
        return EncodedPrompt(ids, None, opened=self._ends_in_thought(ids))

    def _chat(
        self, messages: list[Message], mode: Mode, options: GenerateOptions, most: int | None
    ) -> EncodedPrompt:
        self._need_tokenizer()
        assert self._template is not None  # loaded with the tokenizer
        turns = check_messages(messages)
        marks = None if options.allow_special else self._marks
        variables = options.chat_template_kwargs or {}
        if most is not None and self.switch.budget and mode.thinking != "off":
            variables = {self.switch.budget: most, **variables}
        if self.switch.kind == "effort" and mode.effort not in (None, "none"):
            level = nearest_level(mode.effort, self.switch.levels)
            variables = {self.switch.names[0]: level, **variables}
        chat = partial(chat_parts, self._template, turns, mode.thinking, marks, variables)
        try:
            keeps = options.keep_thoughts
            *begun, end = chat(kept_thoughts(self.tags, self._template) if keeps else None)
        except ThoughtsLost:
            self.said.note(
                "the chat template writes earlier turns in a way that thoughts cannot be put back into: "
                "keep_thoughts changes no prompt"
            )
            *begun, end = chat()
        prefix, opened, opens = turns[-1].get("prefix") is True, False, False
        if self.tags is not None:
            opened = self.tags.opened_by(end) or not self.tags.open
            if prefix:
                opened = self.tags.open_in(turns[-1]["content"])
            opens = opened
            if self.silences(mode) and opened:
                end, opened = self.tags.shut(end) if self.tags.open else end, False
        if mode.thinking == "off" and self.switch.kind == "none":
            self._say_no_switch(mode.name, self._template, opens)
        parts = [*begun, end]
        self._measure_text(sum(map(len, parts)))  # a template may write more than the messages hold
        ids = self._text_ids(parts, self._template.add_special)
        tools = bool(variables.get("tools"))
        if tools and not self._template.reads_tools:
            unknown = "the chat template knows no tools: a text in front of the chat describes them"
            self.said.note(f"{unknown}; calls are read as {self._template.calls.begin}")
        elif tools and self._template.calls is GENERIC:
            unknown = "how the chat template writes calls of tools is not known"
            self.said.note(f"{unknown}; calls are read as {self._template.calls.begin}")
        return EncodedPrompt(ids, "".join(parts), True, opened, prefix, tools)

    def _thought_in_turn(self, prompt: Any) -> int:
        """Tokens of the thoughts since the user's latest message, where these are messages."""
        spent = 0
        for message in reversed(prompt):
            if not isinstance(message, Mapping) or message.get("role") == "user":
                break
            thought = message.get("reasoning_content") or message.get("reasoning")
            if isinstance(thought, str):  # else it is refused later
                spent += len(self._need_tokenizer().encode(thought, add_special=False))
        return spent

    def _say_no_switch(self, mode: str, template: ChatTemplate, opens: bool) -> None:
        """Nothing in the template turns thinking off; `opens`: it opens a thought itself."""
        if opens or any(tag in template.source for tag in self.tags or () if tag):
            self.said.warn(
                f"mode {mode!r} has no thought here, but the chat template has no switch for it: a thought "
                "is closed as soon as it is opened"
            )
        else:
            self.said.note(
                f"the chat template has no thinking switch: mode {mode!r} changes no prompt"
            )

    def _measure_tokens(self, count: int) -> None:
        if count >= self.context:
            raise ValueError(
                f"prompt has {count} tokens; with an answer of at least one it must "
                f"fit the context of {self.context}"
            )

    def _measure_text(self, characters: int) -> None:
        longest = self._need_tokenizer().longest
        if characters > longest * self.context:
            raise ValueError(
                f"prompt has {characters} characters, which cannot fit the context of {self.context}: "
                f"no token is longer than {longest}"
            )

    def _ends_in_thought(self, ids: Sequence[int]) -> bool:
        if self.tags is None or self.tokenizer is None:
            return False
        end = self.tokenizer.decode(ids[-len(self.tags.open) - 8 :], skip_special=False)
        return self.tags.opened_by(end)

    def _ids(self, prompt: Sequence[Any], what: str = "prompt") -> list[int]:
        last = self._config.vocab_size - 1
        ids: list[int] = []
        for place, part in enumerate(prompt):
            try:
                token = operator.index(part)
            except TypeError:
                token = -1
            if isinstance(part, bool) or not 0 <= token <= last:
                raise ValueError(f"{what} token {place} is {shown(part)}, not an id in 0..{last}")
            ids.append(token)
        return ids

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer: give the prompt as token ids")
        return self.tokenizer


def _characters(message: Any) -> int:
    """Count the characters of a message, those of its parts too; what is no message is refused later."""
    values = list(message.values()) if isinstance(message, Mapping) else []
    parts = [part for value in values if isinstance(value, list) for part in value]
    values += [value for part in parts if isinstance(part, Mapping) for value in part.values()]
    return sum(len(value) for value in values if isinstance(value, str))

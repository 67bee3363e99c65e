"""A model's thinking tags or channels: splitting the thought from the answer, and the tokens that open and
close it."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fastslow.engine.host.files import read_object, shown
from fastslow.engine.text.templates import ChatTemplate
from fastslow.engine.text.vocabulary import Tokenizer, begun, hold_back, is_unicode

LONGEST_TAG = 256  # characters
PRESETS = "fastslow.json"  # in a checkpoint's folder
MOST_CLOSINGS = 64  # phrases whose tokens are kept


class ThoughtTags(NamedTuple):
    """The texts between which a model thinks. An empty `open`: an answer begins inside the thought."""

    open: str
    close: str

    @classmethod
    def read(cls, value: Any, where: str) -> ThoughtTags:
        """Two texts, the second not empty, neither a part of the other. ValueError: something else, at `where`."""
        pair = list(value) if isinstance(value, list | tuple) else []
        if len(pair) != 2 or not all(isinstance(tag, str) for tag in pair):
            raise ValueError(
                f"{where}={shown(value)} must be two texts, such as ['<think>', '</think>']"
            )
        if not all(len(tag) <= LONGEST_TAG and is_unicode(tag) for tag in pair):
            raise ValueError(
                f"{where}={shown(value)} must be valid Unicode, of at most {LONGEST_TAG} characters each"
            )
        if not pair[1] or pair[0] == pair[1]:
            raise ValueError(
                f"{where}={shown(value)} must end in a closing tag that differs from the first"
            )
        if pair[0] and (pair[0] in pair[1] or pair[1] in pair[0]):
            raise ValueError(
                f"{where}={shown(value)} must be two tags of which neither holds the other"
            )
        return cls(*pair)

    def ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids of the tags, and of special tokens in them: what `Detokenizer(keep=...)` has to show."""
        parts = [*self, *(mark for tag in self for mark in MARK.findall(tag))]
        found = (tokenizer.token_id(part) for part in parts if part)
        return frozenset(number for number in found if number is not None)

    def opened_by(self, prompt: str) -> bool:
        """Tell whether a prompt ends with the open tag, so that the model starts inside a thought."""
        return bool(self.open) and prompt.rstrip().endswith(self.open.rstrip())

    def open_in(self, answer: str) -> bool:
        """Tell whether an answer so far ends inside a thought; without an open tag it began inside one."""
        return answer.rfind(self.close) < (answer.rfind(self.open) if self.open else 0)

    def shut(self, prompt: str) -> str:
        """A prompt that ends with the open tag, with the thought closed again."""
        return f"{prompt}\n{self.close}\n\n" if prompt.endswith("\n") else prompt + self.close

    def strayed(self, text: str) -> bool:
        """Tell whether the first tag of an answer is the closing one: it began inside a thought."""
        place = text.find(self.close)
        return place >= 0 and not (self.open and 0 <= text.find(self.open) < place)


HARMONY = ThoughtTags(  # gpt-oss's: its thought and its answer are two messages
    "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
)
KNOWN = (
    ThoughtTags("[unused16]", "[unused17]"),
    ThoughtTags("<think>", "</think>"),
    ThoughtTags("[THINK]", "[/THINK]"),
    ThoughtTags("<|channel>thought", "<channel|>"),
)
AROUND_ANSWERS = ("<answer>", "</answer>"), ("<response>", "</response>")  # HunYuan's and ERNIE's
CLOSES = re.compile(r"([<\[])/([\w:]*(?:think|thought|reason)[\w:]*)([>\]])", re.IGNORECASE)
MARK = re.compile(r"<\|\w+\|?>|<\w+\|>")


def find_tags(
    folder: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    given: tuple[str, str] | None = None,
) -> ThoughtTags | None:
    """The caller's tags, else those of the checkpoint's fastslow.json, else `tags_for`."""
    if given is not None:
        return ThoughtTags.read(given, "thinking_tags")
    declared = read_object(folder / PRESETS).get("thinking_tags")
    if declared is not None:
        return ThoughtTags.read(declared, f"{folder / PRESETS}: thinking_tags")
    return tags_for(tokenizer, template)


def tags_for(tokenizer: Tokenizer, template: ChatTemplate | None = None) -> ThoughtTags | None:
    """The tags of a model that declares none: gpt-oss's channels, if the vocabulary has the marks; else a known
    pair, or what the template or a special token closes with a name of such a kind, as `</seed:think>`. Tokens
    that the template writes are taken before other tokens, and these before words of the template."""
    if all(tokenizer.token_id(mark) is not None for tag in HARMONY for mark in MARK.findall(tag)):
        return HARMONY
    source = "" if template is None else template.source
    special = (tokenizer.piece(number) for number in sorted(tokenizer.special_ids))
    closing = CLOSES.finditer("\n".join([source, *filter(None, special)]))
    named = [ThoughtTags(f"{tag[1]}{tag[2]}{tag[3]}", tag[0]) for tag in closing]

    def known(tags: ThoughtTags) -> tuple[bool, bool, bool]:
        parts = [(tag, *MARK.findall(tag)) for tag in tags]  # the tag, or its mark, is a token
        single = all(any(tokenizer.token_id(p) is not None for p in some if p) for some in parts)
        written = all(tag in source for tag in tags)
        return single and written, single, written

    best = max((*KNOWN, *named), key=known)  # the first of those that are known best
    return best if any(known(best)) else None


def answer_tags(source: str) -> tuple[str, ...]:
    """The tags that a model writes around its answers, by its template; empty: it writes none."""
    return next((pair for pair in AROUND_ANSWERS if all(tag in source for tag in pair)), ())


class ThoughtSplitter:
    """Splits a stream of text into reasoning and answer; tags may be cut anywhere.

    The tags are dropped, and so are the newlines between a thought and its answer. A thought that is never
    closed is reasoning to the end. A tag where none belongs is only dropped. Without tags all is answer."""

    def __init__(
        self,
        tags: ThoughtTags | None,
        opened: bool = False,
        once: bool = False,
        begun: bool = False,
        around: tuple[str, ...] = (),
    ) -> None:
        """`opened`: the text begins inside a thought. `once`: where the answer has begun, all is answer.
        `begun`: it has from the start. `around`: tags that are dropped, with newlines beside them, where they stand
        around the answer."""
        self._tags = tags
        self._around = (*around, *(f"\n{tag}" for tag in around[1:]))
        self._within = self._said = False  # the first of them came; the answer has letters
        self._marks: tuple[str, ...] = (*filter(None, tags or ()), *self._around)
        self._once = once
        self._over = begun  # no tag counts from here on
        self._thinking = opened and tags is not None and not begun
        self._bare = False  # newlines after a close tag are still being dropped
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """Take more text; returns what is certain by now to be (reasoning, answer)."""
        if self._tags is None:
            return "", text
        rest = self._held + text
        self._over |= self._once and not self._thinking and not _begins(rest, self._tags.open)
        return self._split(rest)

    def _split(self, rest: str) -> tuple[str, str]:
        parts: tuple[list[str], list[str]] = ([], [])
        while not self._over and (found := [(rest.find(m), m) for m in self._marks if m in rest]):
            before, mark, rest = rest.partition(min(found)[1])
            self._put(before, parts)
            self._pass(mark, parts)
        cut = len(rest) if self._over else len(rest) - hold_back(rest, self._marks)
        self._put(rest[:cut], parts)
        self._held = rest[cut:]
        return "".join(parts[0]), "".join(parts[1])

    def finish(self) -> tuple[str, str]:
        """Return what was still held back, since it might have become a tag, as (reasoning, answer)."""
        parts: tuple[list[str], list[str]] = ([], [])
        self._put(self._held, parts)
        self._held = ""
        return "".join(parts[0]), "".join(parts[1])

    def _pass(self, mark: str, parts: tuple[list[str], list[str]]) -> None:
        if mark in self._around:
            first = mark == self._around[0]
            if self._thinking or (self._said if first else not self._within):
                self._put(mark, parts)
            else:
                self._within, self._bare = first, True
        elif self._tags is not None and mark == self._tags.open:
            self._thinking = True
        elif self._thinking:
            self._thinking, self._bare = False, True
            self._over = self._once

    def _put(self, text: str, parts: tuple[list[str], list[str]]) -> None:
        if self._thinking:
            parts[0].append(text)
            return
        if self._bare:
            text = text.lstrip("\n")
            self._bare = not text
        self._said |= not text.isspace() and bool(text)
        parts[1].append(text)


class TagTokens:
    """The tags in one tokenizer, found by their bytes (UTF-8), however they are cut into tokens.

    closing: gives the tokens that end a thought with a phrase and the closing tag, which it may hold already.
    close_ids: tokens that write the closing tag. ValueError: these tokens cannot write it."""

    def __init__(self, tokenizer: Tokenizer, tags: ThoughtTags) -> None:
        self._tokenizer = tokenizer
        self._tags = tags
        self.closing = lru_cache(MOST_CLOSINGS)(self._written)
        self._openings: dict[bytes, frozenset[int]] = {}
        self._hidden = tokenizer.special_ids - tags.ids(tokenizer)
        self.open, self.close = tags.open.encode(), tags.close.encode()
        self.close_ids = self.closing("")

    def spell(self, token: int) -> bytes:
        """The bytes of a token in the answer's text; marks that the text does not show have none."""
        return b"" if token in self._hidden else self._tokenizer.token_bytes(token)

    def opening(self, text: bytes) -> frozenset[int]:
        """Tokens that complete the opening tag after a text. Without a begun tag it is the tag's own token."""
        said = begun(text, self.open)
        if said not in self._openings:
            own = self._tokenizer.token_id(self._tags.open) if self.open else None
            some = range(self._tokenizer.vocab_size) if said else [] if own is None else [own]
            found = (t for t in some if self.open in said + self.spell(t))
            self._openings[said] = frozenset(found)
        return self._openings[said]

    def written(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that is put into a thought. ValueError: it holds a tag."""
        for tag in self._tags:
            if tag and tag in text:
                raise ValueError(f"warning={shown(text)} must not hold the tag {tag!r}")
        return self._encode(text)

    def _written(self, phrase: str) -> tuple[int, ...]:
        single = self._tokenizer.token_id(self._tags.close)
        if self._tags.close in phrase:
            ids = self._encode(phrase)
        elif single is None:
            ids = self._encode(phrase + self._tags.close)
        else:
            ids = (*self._encode(phrase), single)
        if self.close not in b"".join(map(self.spell, ids)):
            text = phrase + self._tags.close
            raise ValueError(f"closing={text!r} cannot be written in this model's tokens")
        return ids

    def _encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that continues another: without a tokenizer's own first space."""
        ids = self._tokenizer.encode_exactly(text)
        return tuple(self._tokenizer.encode(text, add_special=False) if ids is None else ids)


def _begins(text: str, tag: str) -> bool:
    """Tell whether a text begins with a tag, or may come to."""
    return text.startswith(tag) if len(text) >= len(tag) else tag.startswith(text)


START, CHANNEL, BODY, END, CALL = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"
MARKS = START, CHANNEL, BODY, END, CALL
TO_FUNCTION = re.compile(r"\bto=functions\.")
BREAK = "\n\n"  # between two messages of the reasoning


class ChannelSplitter(ThoughtSplitter):
    """Splits a stream of messages: the bodies of `final` are answer, those of all other channels are reasoning,
    and headers are dropped. `commentary` is to a tool, or to the user before a tool is called.

    A text without a header is answer. With `calls` a message to a function is answer as the model wrote it."""

    def __init__(
        self, opened: bool = False, calls: bool = False, once: bool = False, begun: bool = False
    ) -> None:
        """With `once` a text without a header is no answer; the others: see `splitter`."""
        super().__init__(HARMONY, opened, once, begun)
        self._marks = MARKS
        self._calls = calls
        self._calling = False  # a message to a function is being read
        in_header = once and not opened and not begun
        self._header: str | None = "" if in_header else None  # that is being read
        self._reasoned = False  # there was some

    def push(self, text: str) -> tuple[str, str]:
        return self._split(self._held + text)

    def _pass(self, mark: str, parts: tuple[list[str], list[str]]) -> None:
        header = self._header
        if mark == BODY and header is not None and self._calls and TO_FUNCTION.search(header):
            self._thinking, self._header, self._calling = False, None, True
            began = "" if header.startswith(START) else f"{START}assistant"
            parts[1].append(f"{began}{header}{BODY}")
        elif mark in (END, CALL) and self._calling:
            self._calling = False
            parts[1].append(mark)
        elif mark == BODY and header is not None:
            channel = header.rpartition(CHANNEL)[2].split() if CHANNEL in header else []
            self._thinking, self._header = channel[:1] not in ([], ["final"]), None
            self._over = self._once and not self._thinking
            if self._thinking and self._reasoned:
                parts[0].append(BREAK)
        elif mark == START or (mark == CHANNEL and header is None):
            self._header, self._calling = mark, False
        elif mark == CHANNEL:
            self._header = f"{header}{mark}"
        elif mark in (END, CALL):
            self._header = None

    def _put(self, text: str, parts: tuple[list[str], list[str]]) -> None:
        if self._header is not None:
            self._header += text
            return
        self._reasoned |= self._thinking and bool(text)
        parts[not self._thinking].append(text)


def splitter(
    tags: ThoughtTags | None,
    opened: bool,
    calls: bool = False,
    once: bool = False,
    begun: bool = False,
    around: tuple[str, ...] = (),
) -> ThoughtSplitter:
    """Return the splitter of answers of a model with these tags; `opened`: an answer begins inside a thought;
    `calls`: it may call functions, and the text shows how; `once`: where it has begun, all is answer;
    `begun`: no thought comes before it; `around`: see `answer_tags`."""
    if tags == HARMONY:
        return ChannelSplitter(opened, calls, once, begun)
    return ThoughtSplitter(tags, opened, once, begun, around)

"""A prefix whose keys and values stay in the cache until it is let go of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from itertools import takewhile
from typing import Self

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state.running import OPENING
from fastslow.engine.params import SamplingParams, shown
from fastslow.request.group import GroupParts, RequestGroup, start
from fastslow.request.options import GenerateOptions, Prompt

ONE_TOKEN = SamplingParams(max_tokens=1, min_tokens=0, ignore_eos=True, temperature=0.0)


class PinnedPrefix:
    """Pinned tokens, which `LLM.pin` returns: requests of the same mode and memory key (with `every_key`, of any)
    find them in the cache.
    `unpin` lets go of them, and so do the end of a `with` block, `LLM.forget_prompts` and `LLM.close`.
    `tokens` are pinned, a multiple of the page size, in `pages`.
    """

    def __init__(self, tokens: int, pages: int, release: Callable[[], None]) -> None:
        self.tokens = tokens
        self.pages = pages
        self._release = release

    def unpin(self) -> None:
        """Let go of it: its pages are given up when others need them. Twice is fine."""
        with suppress(RuntimeError):  # the LLM is closed
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unpin()


class PrefixPinner:
    """Reads prefixes, and pins them. Pins leave room for the longest request, of `context` tokens."""

    def __init__(
        self,
        parts: GroupParts,
        kv: KVCache,
        context: int,
        between_steps: Callable[[Callable[[], None]], None],
    ) -> None:
        self._parts = parts
        self._kv = kv
        self._spare = kv.pages_for(context)
        self._between_steps = between_steps
        self._numbers = itertools.count()

    def pin(self, prompt: Prompt, options: GenerateOptions, every_key: bool) -> PinnedPrefix:
        """Read a prefix, and pin it before other requests can take its pages; see `LLM.pin`."""
        builder = self._parts.builder
        builder.check(prompt, options)
        if not isinstance(every_key, bool):
            raise ValueError(f"every_key={shown(every_key)} must be True or False")
        if every_key and options.memory_key is not None:
            raise ValueError("every_key=True and a memory_key contradict each other: give one")
        mode, why, *_ = builder.modes.find(options.mode, prompt)
        if why is not None:
            raise ValueError("pin needs one mode, and this one chooses: name a preset")
        each = [builder.inputs.encode(one, mode, options).tokens for one in _continued(prompt)]
        tokens = [same[0] for same in takewhile(lambda x: len(set(x)) == 1, zip(*each))]
        tokens = tokens[: self._whole_pages(len(tokens))]
        reads = mode.model_copy(update={"escalate": None, "latency_ms": None})  # and does no more
        alone = {"mode": reads, "chat_template_kwargs": None, "sampling": ONE_TOKEN}
        # running states are kept before what may be a template's opening of an answer
        more = tokens[-OPENING:] if self._kv.storage.running is not None else []
        group = RequestGroup([*tokens, *more], options.model_copy(update=alone), self._parts)
        group.prepare()
        (root, for_all), number = group.roots, next(self._numbers)
        opened = for_all if every_key else None
        held = Future[int]()

        def hold() -> None:  # in the engine's thread, right after the last step
            try:
                held.set_result(self._kv.pins.add(number, tokens, root, self._spare, opened))
            except ValueError as error:
                held.set_exception(error)

        def release() -> None:
            self._between_steps(lambda: self._kv.pins.remove(number))

        group.when_done(hold)
        start([group])
        found = held.result()
        if found < len(tokens):
            release()
            group.outcome()
            raise RuntimeError("the prefix was forgotten while it was read; pin it again")
        return PinnedPrefix(found, self._kv.pages_for(found), release)

    def _whole_pages(self, size: int) -> int:
        """Return how many of `size` tokens can be pinned: those of full pages. ValueError: they cannot be pinned."""
        page = self._kv.page_size
        if not self._kv.prefix_caching:
            raise ValueError("pin needs prefix_caching=True")
        if size < page:
            raise ValueError(
                f"the prefix has {size} tokens, and the least to pin is a page of {page}"
            )
        self._kv.pins.check(size // page, self._spare)
        return size // page * page


def _continued(prompt: Prompt) -> list[Prompt]:
    """Return two chats that extend these messages differently. Their common prefix is the prefix of every chat that
    continues this one, without what the template writes only after a last message. Return a text or token ids
    unchanged."""
    messages = [part for part in prompt if isinstance(part, Mapping)]
    if not messages:
        return [prompt]
    if messages[-1].get("role") == "user":
        messages.append({"role": "assistant", "content": "."})
    return [[*messages, {"role": "user", "content": text}] for text in ("A", "b")]

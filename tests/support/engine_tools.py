"""The engine on a tiny model: requests run to their end, the KV checked after every third step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import MOGE, tensors, write
from grammar_tools import GrammarKit
from request_fields import request_fields
from thoughts import Bound

from fastslow.draft.base import BaseDrafter
from fastslow.draft.router import DrafterRouter
from fastslow.engine.backends.accelerator.kv import BlockStorage
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import Request
from fastslow.engine.core.request_parts import Drafting, EncodedPrompt
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.params import GrammarSpec, SamplingParams, Speculation
from fastslow.engine.sampling.accept.accept import RULES
from fastslow.engine.sampling.probs import probs_at
from fastslow.engine.sampling.rng import Purpose, draw, stream
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.text.vocabulary import Detokenizer, Tokenizer
from fastslow.engine.types import Drafter, Floats, OneHot, RequestView, Tree
from fastslow.policies.speculation.planner import FixedLength


@dataclass(frozen=True)
class Ask:
    """A request that a test wants answered."""

    tokens: tuple[int, ...]
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=20))
    drafter: str = "off"
    nodes: int = 6
    groups: int | None = None
    seed: int = 0
    bound: Bound | None = None
    rule: str = "token"
    grammar: GrammarSpec | None = None
    thought: SamplingParams | None = None  # inside a thought
    within: str = ""  # the drafter there; "" = the same
    thinks: bool | None = None  # under a grammar: the prompt opened a thought; None = there is none

    @property
    def plain(self) -> Ask:
        return replace(self, drafter="off", within="")


@dataclass(frozen=True)
class Setting:
    """The setup of the engine: plenty of everything unless a test takes it away."""

    pages: int = 256
    page_size: int = 4
    prompt_rows: int = 512
    max_running: int = 64


PLENTY = Setting()

Make = Callable[[KVCache], Drafter]


class Bench:
    """A model with the drafters that asks may name; a fresh engine for every run.

    Args:
        model: the target.
        drafters: name -> drafter, given the target's KV.
        tokenizer: for stop strings.
    """

    def __init__(self, model: Model, drafters: dict[str, Make], tokenizer: Tokenizer | None = None) -> None:
        self.model = model
        self.drafters = drafters
        self.tokenizer = tokenizer
        self._alone: dict[str, Request] = {}

    def alone(self, ask: Ask) -> Request:
        """Plain decoding, nothing beside it: what everything must equal."""
        key = repr(ask.plain)
        if key not in self._alone:
            self._alone[key] = self.run([ask.plain])[0]
        return self._alone[key]

    def core(self, setting: Setting = PLENTY, asks: Sequence[Ask] | None = None) -> EngineCore:
        """`asks`: whose drafters are made; None = all."""
        kv = cache_for(self.model, setting.pages, setting.page_size)
        wanted = None if asks is None else {n for ask in asks for n in (ask.drafter, ask.within)}
        made = {
            Speculation(drafter=name): make(kv)
            for name, make in self.drafters.items()
            if wanted is None or name in wanted
        }
        return EngineCore(self.model, kv, DrafterRouter(made), setting.prompt_rows, setting.max_running)

    def request(self, number: int, ask: Ask, **more: Any) -> Request:
        end_ids = frozenset(ask.params.stop_token_ids)
        if not ask.params.ignore_eos:
            end_ids |= frozenset(self.model.config.eos_ids)
        words, room, grammar = self.tokenizer, ask.params.max_tokens, None
        if ask.grammar is not None:
            grammar = self.kit.grammar(ask.grammar, end_ids, len(ask.tokens), ask.thinks)
        by_phase, max_len = None, len(ask.tokens) + room - 1
        if ask.within:
            each = [Speculation(drafter=name) for name in (ask.drafter, ask.within)]
            after, within = [Drafting(one, FixedLength(ask.nodes)) for one in each]
            by_phase = after, within
        return Request(
            id=number, by_phase=by_phase, prompt=EncodedPrompt(list(ask.tokens)), params=ask.params,
            thought_params=ask.thought,
            drafting=Drafting(
                Speculation(drafter=ask.drafter), FixedLength(0 if ask.drafter == "off" else ask.nodes),
            ),
            stopper=Stopper(ask.params, end_ids, room, Detokenizer(words) if words else None), groups=ask.groups,
            seed=ask.seed, max_len=max_len, end_ids=end_ids,
            thinking=ask.bound.of(words, len(ask.tokens)) if ask.bound and words else None, grammar=grammar,
            rule=RULES[ask.rule], reproducible=ask.rule == "reproducible",
            **request_fields({"rope_length": self.model.config.rope_length(max_len), **more}),
        )  # fmt: skip

    @cached_property
    def kit(self) -> GrammarKit:
        """For asks under a grammar."""
        assert self.tokenizer is not None
        return GrammarKit(self.tokenizer, self.model.config.vocab_size)

    def run(self, asks: Sequence[Ask], setting: Setting = PLENTY, warm: Sequence[Ask] = ()) -> list[Request]:
        """Answers to all asks in one batch; those of `warm` were answered by the same engine before."""
        core = self.core(setting, asks)
        if warm:
            finish(core, [self.request(1000 + n, ask) for n, ask in enumerate(warm)])
        requests = [self.request(n, ask) for n, ask in enumerate(asks)]
        finish(core, requests)
        return requests


def finish(core: EngineCore, requests: Sequence[Request]) -> None:
    """Run requests to their end; every page must come back."""
    for request in requests:
        core.add(request)
    steps = 0
    while not core.idle:
        core.step()
        steps += 1
        if steps % 3 == 0 or core.idle:
            core.kv.check_integrity()
        assert steps < 2000 + 10 * len(requests), "the engine does not come to an end"
    assert not core.kv.requests and core.kv.free_pages == core.kv.pages, "pages leaked"


def answer(request: Request) -> list[int]:
    return request.tokens[request.prompt_length :]


def outcome(request: Request) -> tuple[list[int], str, str | None, str | int | None]:
    """All that a caller sees of an answer."""
    stopper = request.stopper
    return answer(request), stopper.text, stopper.reason, stopper.matched


def cache_for(model: Model, pages: int = 256, page_size: int = 4) -> KVCache:
    """Small pages make many borders; where a page is a block of the kernels, as many of those."""
    blocks = issubclass(model.storage, BlockStorage)
    return kv_cache_for(model, pages, model.storage.page_size if blocks else page_size)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 8}
SMALL |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 48}


def write_kin(
    folder: Path, config: dict[str, Any] | None = None, jitter: float = 0.0, routed: float = 1.0, **fields: Any
) -> Path:
    """A tiny checkpoint whose kin, of the same config and another jitter, mostly say the same.

    jitter: relative size of what is added to every tensor. routed: how much routed experts say.
    """
    base = config or MOGE
    full = {**base, **{name: size for name, size in SMALL.items() if name in base}, **fields}
    table = tensors(full, seed=3)
    random = torch.Generator().manual_seed(4)
    for name, tensor in table.items():
        added = torch.randn(tensor.shape, generator=random) * tensor.std() * jitter
        table[name] = tensor + added.to(tensor.dtype)
        if name.endswith("router_scale"):
            table[name] = table[name] * routed
    return write(folder, full, table)


def dense_probs(logits_V: torch.Tensor, request: RequestView, drafted: Sequence[int]) -> Floats:
    """`probs_at` as f32 [V] in all cases: one-hot at temperature 0."""
    decided = probs_at(logits_V, request, drafted)
    if not isinstance(decided, OneHot):
        return decided
    one_hot: Floats = np.eye(1, len(logits_V), decided.token, dtype=np.float32)[0]
    return one_hot


class TreeDraft(BaseDrafter):
    """Drafts for each request alone."""

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return [self._tree(r, n) for r, n in zip(batch, nodes)]

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        raise NotImplementedError


class OracleDraft(TreeDraft):
    """Knows the answers, by request, and errs where `errs` says so: long runs, cut anywhere.

    Args:
        answers: request id -> prompt and answer.
        errs: (position) -> draft a wrong token there.
        forked: a wrong leaf before every right token, so that accepted nodes are not adjacent. The leaf
            is the token that is right one place later: who counts it, penalises that one.
    """

    def __init__(
        self, answers: dict[int, list[int]], errs: Callable[[int], bool] = lambda _: False, forked: bool = False
    ) -> None:
        self._answers = answers
        self._errs = errs
        self._forked = forked

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        place = len(request.tokens)
        known = self._answers.get(request.id, [])[place : place + nodes]
        told = [_other(x) if self._errs(place + i) else x for i, x in enumerate(known)]
        if not self._forked:
            return Tree.chain(told)
        later = [*known[1:], 5]
        leaves = [y if y != x else _other(x) for x, y in zip(told, later)]
        pairs = [token for pair in zip(leaves, told) for token in pair][: nodes - nodes % 2]
        return Tree(pairs, [2 * (i // 2) - 1 for i in range(len(pairs))])


def _other(token: int) -> int:
    return token - 1 if token > 4 else token + 5


class RandomDraft(TreeDraft):
    """Trees of any shape from the request's own latest tokens: chosen, siblings may be the same."""

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        draws = stream(request.seed, len(request.tokens), Purpose.DRAFT)
        recent = request.tokens[-8:]
        tokens = [recent[int(draws.integers(len(recent)))] for _ in range(nodes)]
        return Tree(tokens, [int(draws.integers(-1, i)) for i in range(nodes)])


class SampledDraft(TreeDraft):
    """Sampled trees: at each depth `width` siblings, all drawn from the same q.

    Args:
        q: (tokens so far) -> f32 [V].
        width: siblings at each depth; the last one goes on.
    """

    def __init__(self, q: Callable[[Sequence[int]], Floats], width: int = 1) -> None:
        self._q = q
        self._width = width

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        text = list(request.tokens)
        tokens: list[int] = []
        parents: list[int] = []
        q_probs: list[Floats] = []
        parent = -1
        while len(tokens) + self._width <= nodes:
            q_V = self._q(text)
            draws = stream(request.seed, len(text), Purpose.DRAFT)
            siblings = [draw(q_V, draws) for _ in range(self._width)]
            tokens += siblings
            parents += [parent] * self._width
            q_probs += [q_V] * self._width
            parent = len(tokens) - 1
            text.append(siblings[-1])
        return Tree(tokens, parents, np.stack(q_probs) if q_probs else None)

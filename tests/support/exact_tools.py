"""Exactness: benches with every drafter, and the check that all a caller sees is plain decoding's."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DENSE
from engine_tools import (
    PLENTY,
    Ask,
    Bench,
    Make,
    OracleDraft,
    RandomDraft,
    SampledDraft,
    Setting,
    cache_for,
    outcome,
    write_kin,
)
from head_tools import tiny_runner
from spellings import Pieces, letters, renumbered
from tokenizers_tiny import write_bpe

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.model.vocab import SharedTokens
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.registry import DRAFTERS, DrafterDeps, LoadedModel, build_drafter
from fastslow.draft.several import FallbackDrafter
from fastslow.draft.suffix.sources import AnswerMemory
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.request import Request
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.token_mask import TokenMask
from fastslow.engine.types import Drafter, Floats
from fastslow.policies.speculation.selection import AdaptiveSelection

VOCAB = 320
ROUTED = 0.3
PROMPTS = [tuple(np.random.default_rng(n).integers(5, VOCAB, n).tolist()) for n in (3, 21, 9, 14, 6)]
CHAINS = ("ngram", "model", "self0", "self1", "ngram+self", "skip", "common")
TREES = ("random", "sampled")
SPOKEN = np.random.default_rng(0).permutation(VOCAB)[:310].tolist()  # by the foreign draft model
ORACLES = ("told", "erring", "forked")
DENSE_DRAFTERS = (*("ngram", "model", "ngram+model", "skip", "common", "random", "sampled"), *ORACLES)
EVERY = (*CHAINS, *TREES, *ORACLES)
KINDS = ("moge", "dense")
THERE = [name for name in DRAFTERS if name != "mtp"]  # which these targets lack, see `test_mtp.py`
NAMES = (*THERE, "auto", "+".join(THERE), "|".join(THERE))  # all that can be asked for


SETTINGS = {  # and whether the prompts' beginnings are cached
    "one batch": (Setting(), False), "three at a time, chunks of 3": (Setting(max_running=3, prompt_rows=3), False),
    "prefix hit": (Setting(), True), "few pages, small chunks": (Setting(pages=26, prompt_rows=5), False),
    "few pages, prefix hit": (Setting(pages=30), True),
    "pages of 1, few": (Setting(pages=104, page_size=1, prompt_rows=9), True),
}  # fmt: skip


def make_bench(
    folder: Path,
    kind: str,
    dtype: str = "float32",
    device: str = "cpu",
    load: Callable[..., Model] = load_model,
    **fields: Any,
) -> Bench:
    """Target and draft model are kin, so that they often agree. `load` loads the target."""
    base = DENSE if kind == "dense" else None
    fields = {"vocab_size": VOCAB, **fields}
    target = write_kin(folder / kind, base, routed=ROUTED, **fields)
    write_bpe(target, vocab_size=VOCAB)
    kin = write_kin(folder / f"{kind}-kin", base, 0.04, ROUTED, **fields)
    model = load(target, dtype=dtype, device=device, progress=False)
    small = load_model(kin, dtype, device, progress=False)

    stranger = load_model(renumbered(folder / f"{kind}-foreign", kin, SPOKEN), dtype, device, progress=False)
    words = letters(VOCAB)
    ours, theirs = Pieces(words), Pieces([words[x] for x in SPOKEN])
    shallow = model.layer_subset([0])
    head = tiny_runner(target)

    def common() -> SharedTokens:
        return SharedTokens(ours, theirs, VOCAB)

    def ngram() -> NgramDraft:
        return NgramDraft(longest=3, shortest=1)

    def own() -> OwnKV:
        return OwnKV(cache_for(small))

    def by_name(name: str) -> Make:
        def make(kv: KVCache) -> Drafter:
            deps = DrafterDeps(
                model, kv, load_model=lambda path: LoadedModel(small, cache_for(small)),
                load_head=lambda path: head, load_corpus=lambda path: pytest.fail("no corpus is asked for"),
                memory=AnswerMemory(), own=("head",), selection=lambda count, settings: AdaptiveSelection(count),
            )  # fmt: skip
            layers = None if kind == "moge" else (0,)
            return build_drafter(Speculation(drafter=name, model="small", layers=layers), deps)

        return make

    drafters: dict[str, Make] = {
        "ngram": lambda kv: ngram(),
        "model": lambda kv: ModelDraft(small, own()),
        "random": lambda kv: RandomDraft(),
        "sampled": lambda kv: SampledDraft(_recent_probs, width=2),
        "ngram+model": lambda kv: FallbackDrafter(ngram(), ModelDraft(small, own())),
        "skip": lambda kv: ModelDraft(shallow, BorrowedKV(kv)),
        "common": lambda kv: ModelDraft(stranger, OwnKV(cache_for(stranger)), vocab_map=common()),
    }
    drafters |= {f"named {name}": by_name(name) for name in NAMES}
    if kind == "moge":
        drafters |= {
            "self0": lambda kv: ModelDraft(model, BorrowedKV(kv), 0),
            "self1": lambda kv: ModelDraft(model, BorrowedKV(kv), 1),
            "ngram+self": lambda kv: FallbackDrafter(ngram(), ModelDraft(model, BorrowedKV(kv), 0)),
        }
    return Bench(model, drafters, load_tokenizer(target))


def _recent_probs(text: Sequence[int]) -> Floats:
    law_V = np.full(VOCAB, 0.2 / VOCAB, dtype=np.float32)
    for token in text[-4:]:
        law_V[token] += 0.2
    result: Floats = law_V / law_V.sum()
    return result


def tell(bench: Bench, asks: list[Ask]) -> None:
    """Oracles that know the plain answers of these asks, at these places in the batch."""
    known = {n: bench.alone(ask).tokens for n, ask in enumerate(asks)}
    bench.drafters |= {
        "told": lambda kv: OracleDraft(known),
        "erring": lambda kv: OracleDraft(known, lambda place: place % 5 == 3),
        "forked": lambda kv: OracleDraft(known, lambda place: place % 7 == 5, forked=True),
    }


def check(bench: Bench, asks: list[Ask], setting: Setting = PLENTY, warm: bool = False) -> dict[str, int]:
    """Everything a caller sees equals the plain answer alone; returns what drafts came to."""
    tell(bench, asks)
    requests = bench.run(asks, setting, [ask.plain for ask in others(asks)] if warm else ())
    sums = {"drafted": 0, "accepted": 0, "preempted": 0, "cached": 0}
    for ask, request in zip(asks, requests, strict=True):
        same_answer(request, bench.alone(ask))
        sums["drafted"] += request.spec_stats.drafted
        sums["accepted"] += request.spec_stats.accepted
        sums["preempted"] += request.spec_stats.preemptions
        sums["cached"] += request.spec_stats.cached
    return sums


def same_answer(request: Request, plain: Request) -> None:
    """All that a caller sees, log-probabilities too."""
    assert outcome(request) == outcome(plain), request.spec_stats
    assert len(request.log.logprobs) == len(plain.log.logprobs)
    ours = [*request.log.logprobs, *request.log.prompt_logprobs]
    for one, other in zip(ours, [*plain.log.logprobs, *plain.log.prompt_logprobs], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


class WatchedGrammar:
    """A grammar that calls `before` before it makes a mask."""

    def __init__(self, grammar: Any, before: Callable[[list[int], list[int]], object]) -> None:
        self._grammar, self._before = grammar, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grammar, name)

    def at(self, tokens: Sequence[int], drafted: Sequence[int]) -> TokenMask:
        self._before(list(tokens), list(drafted))
        mask: TokenMask = self._grammar.at(tokens, drafted)
        return mask


def watch(
    bench: Bench, patch: pytest.MonkeyPatch, before: Callable[[list[int], list[int]], object], **fields: Any
) -> None:
    """From now on the grammars of all requests are watched, and say these fields of themselves."""
    made = bench.request

    def request(number: int, ask: Ask, **more: Any) -> Request:
        built = made(number, ask, **more)
        if built.grammar is not None:
            watched: Any = WatchedGrammar(built.grammar, before)
            vars(watched).update(fields)
            built.grammar = watched
        return built

    patch.setattr(bench, "request", request)


def others(asks: list[Ask]) -> list[Ask]:
    """The same prompts in all modes, so that a prefix of the wrong mode could be found.

    The whole model comes last, whatever order Python gives a set: few pages keep the last prompts alone.
    """
    modes = sorted({ask.groups for ask in asks}, key=lambda groups: (groups is None, groups or 0))
    return [Ask(ask.tokens, SamplingParams(max_tokens=2), groups=groups) for groups in modes for ask in asks]


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 28, "ignore_eos": True, **fields})


def shorter(asks: list[Ask], most: int) -> list[Ask]:
    """The same with answers of at most so many tokens, for engines that are slow."""
    shapes = [{"max_tokens": min(ask.params.max_tokens or most, most)} for ask in asks]
    return [replace(ask, params=ask.params.model_copy(update=shape)) for ask, shape in zip(asks, shapes)]


def mixed(bench: Bench) -> list[Ask]:
    """Requests that differ in everything, and with the third one a seeded sample."""
    text = bench.alone(Ask(PROMPTS[1], params(repetition_penalty=1.4))).stopper.text
    bias: dict[int, float] = {7: 4.0, 8: 4.0}
    return [
        Ask(PROMPTS[0], params(), "self0"),
        Ask(PROMPTS[1], params(repetition_penalty=1.4, stop=[text[20:22]]), "forked"),
        Ask(PROMPTS[2], params(temperature=0.9, seed=3), "off", groups=2, seed=3),
        Ask(PROMPTS[3], params(repetition_penalty=1.4, max_tokens=33), "model", groups=0),
        Ask(PROMPTS[4], params(presence_penalty=1.5, logit_bias=bias), "erring", groups=1),
        Ask(PROMPTS[1], params(frequency_penalty=1.0), "ngram+self", groups=2),
        Ask(PROMPTS[1], params(max_tokens=17, presence_penalty=1.0), "random", groups=0),
        Ask(PROMPTS[3], params(min_tokens=9, ignore_eos=False), "self1", nodes=3),
        Ask(PROMPTS[2], params(repetition_penalty=1.2), "sampled", groups=1),
        Ask(PROMPTS[0], params(frequency_penalty=0.5), "self1", nodes=7),
        Ask(PROMPTS[4], params(max_tokens=21), "common", groups=2),
        Ask(PROMPTS[1], params(max_tokens=15), "skip", groups=0),
    ]

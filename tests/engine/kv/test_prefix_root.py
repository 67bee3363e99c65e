"""Whose rows a text may share: all that decides them is in the key, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_dense
from engine_tools import Ask, Bench, Setting, answer, cache_for, finish

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import OwnKV
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.params import SamplingParams

ORIGINAL = 32  # tokens of context before it was stretched
PROMPT = tuple(np.random.default_rng(0).integers(5, 96, 14).tolist())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its rotary base depends on the longest text that a request may become."""
    folder: Path = tmp_path_factory.mktemp("dynamic")
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    write_dense(folder, rope_scaling=scaling, max_position_embeddings=ORIGINAL)
    return load_model(folder, "float32", progress=False)


def ask(longest: int, drafter: str = "off", **params: Any) -> Ask:
    room = longest + 1 - len(PROMPT)
    return Ask(PROMPT, SamplingParams(max_tokens=room, ignore_eos=True, **params), drafter)


@pytest.mark.parametrize(
    ("first", "second", "cached"), [(20, 31, 12), (ORIGINAL, 20, 12), (40, 40, 12), (20, 40, 0), (40, 60, 0)]
)
def test_texts_share_pages_where_their_rotary_base_is_one(model: Model, first: int, second: int, cached: int) -> None:
    bench = Bench(model, {})
    core = bench.core()
    requests = [bench.request(n, ask(longest)) for n, longest in enumerate((first, second))]
    for request in requests:
        finish(core, [request])
    assert requests[1].spec_stats.cached == cached
    assert answer(requests[1]) == answer(bench.alone(ask(second)))


class Opened(OwnKV):
    """Notes how many tokens of each text were found in the draft model's cache."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__(cache)
        self.found: list[int] = []

    def prepare(self, text: Any, nodes: int) -> int:
        new = text.request.id not in self._written
        ready = super().prepare(text, nodes)
        self.found += [self.cache.valid(text.request.id)] * new
        return ready


@pytest.mark.parametrize(("longest", "cached"), [((20, 30), 12), ((20, 60), 0), ((40, 60), 0)])
def test_a_draft_models_pages_have_its_rotary_base(model: Model, longest: tuple[int, int], cached: int) -> None:
    bench = Bench(model, {})
    wishes = [ask(size, temperature=1.0) for size in longest]
    kv = Opened(cache_for(model))
    drafter = ModelDraft(model, kv)
    requests = [bench.request(n, wish) for n, wish in enumerate(wishes)]
    trees = []
    for request in requests:
        trees += drafter.propose([request], [4])
        drafter.release([request.id])
    assert kv.found == [0, cached]
    fresh = ModelDraft(model, OwnKV(cache_for(model))).propose(requests[1:], [4])
    assert trees[1].probs is not None and fresh[0].probs is not None
    assert np.array_equal(trees[1].probs, fresh[0].probs), "rows of another base were read"


def test_pages_are_shared_within_one_memory_key(model: Model) -> None:
    bench = Bench(model, {})
    core, found = bench.core(), []
    for n, key in enumerate(("a", "b", None, "a", "b", None)):
        request = bench.request(n, ask(20), memory_key=key)
        finish(core, [request])
        found.append(request.spec_stats.cached)
    assert found == [0, 0, 0, 12, 12, 12]
    kv = Opened(cache_for(model))
    drafter = ModelDraft(model, kv)
    for n, key in enumerate(("a", "b", "a")):
        drafter.propose([bench.request(n, ask(20), memory_key=key)], [4])
        drafter.release([n])
    assert kv.found == [0, 0, 12]
    running = bench.request(3, ask(20), memory_key="a")
    drafter.propose([running], [4])
    drafter.forget()
    running.sharing.allowed = False  # as the engine has it
    running.tokens += [7] * 8
    drafter.propose([running], [4])
    drafter.release([3])
    drafter.propose([bench.request(4, Ask(tuple(running.tokens)), memory_key="a")], [4])
    assert kv.found == [0, 0, 12, 12, 0]


@pytest.mark.parametrize("state", ["runs", "waits"])
def test_nothing_of_a_request_is_shared_once_prompts_are_forgotten(model: Model, state: str) -> None:
    bench = Bench(model, {})
    core = bench.core(Setting(max_running=1))
    first, second = (bench.request(n, ask(24)) for n in range(2))
    core.add(first)
    core.step()
    if state == "waits":
        core.add(second)
        core.step()
        first = second
    core.forget_prompts()
    while not core.idle:
        core.step()
    third = bench.request(2, ask(24))
    finish(core, [third])
    assert third.spec_stats.cached == 0 and answer(third) == answer(first)

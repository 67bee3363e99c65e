"""A row of any family has the same bits whatever runs beside it and however its text was cut up."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
import texts
import torch
from checkpoints import FAMILIES
from family_tools import KERNELS, load

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.model.base import Model
from fastslow.engine.types import Rows, Segment

PARENTS = [-1, 0, 0, 1, 2, 2, 5, 0, 3, 6]
DEPTHS = [0, 1, 1, 2, 2, 2, 3, 1, 3, 4]
FORMS = [
    (family, form, kernels)
    for family in FAMILIES
    for form in ("float32", "bfloat16", "float64")
    for kernels in KERNELS
    if form != "float64" or not kernels
]


# One by one at the beginning, and where rows 128 and 256 are passed.
ALONE = [*[1] * 4, 116, *[1] * 16, 112, *[1] * 16, 26]


@pytest.fixture(scope="module", params=FORMS, ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    family, form, kernels = request.param
    folder = checkpoints.write_family(tmp_path_factory.mktemp(family), family)
    return load(folder, kernels, form)


@pytest.fixture
def counts(model: Model) -> list[int | None]:
    """How many experts a request may run."""
    return [None, 2, 1, 3] if model.config.router else [None]


def test_one_chunk_pieces_and_one_by_one_agree(model: Model, counts: list[int | None]) -> None:
    count = sum(ALONE)  # over two attention blocks and two cuts of a prompt chunk
    tokens = texts.tokens_of(count)
    for few in counts[:2]:
        whole = texts.logits(model, tokens, groups=few)
        assert torch.equal(whole, texts.logits(model, tokens, ALONE, groups=few))
        assert torch.equal(whole, texts.logits(model, tokens, [3, 126, 1, 5, 155], groups=few))
        scattered = np.random.default_rng(1).permutation(400)[:count]
        assert torch.equal(whole, texts.logits(model, tokens, groups=few, slots=scattered))


def test_fewer_experts_are_another_answer(model: Model, counts: list[int | None]) -> None:
    tokens = texts.tokens_of(20)
    answers = [texts.logits(model, tokens, groups=few) for few in counts]
    same = [a.equal(b) for a in answers for b in answers]
    everything = len(counts) > 1  # None and 3 are the same number here
    assert sum(same) == len(counts) + 2 * everything


@pytest.mark.parametrize("context", [1, 8, 126, 250])
def test_nodes_of_a_tree_equal_plain_decoding(
    model: Model, counts: list[int | None], context: int
) -> None:
    """Beside requests of other lengths and other numbers of experts."""
    text, nodes = texts.tokens_of(context, seed=2), texts.tokens_of(len(PARENTS), seed=3)
    lengths = [1, 3, 60, 131, 20]
    places = np.random.default_rng(4).permutation(1000)
    kv = texts.storage(model, 1000)
    slots, free = places[:context], places[300:]
    few = counts[context % len(counts)]
    model.forward(Rows.of([texts.chunk(text, 0, context, slots, few)]), kv)
    segments = []
    for i, length in enumerate(lengths):
        other, own, free = texts.tokens_of(length, seed=i), free[:length], free[length:]
        segments.append(texts.chunk(other, 0, length, own, counts[i % len(counts)]))
    depths = [context + depth for depth in DEPTHS]
    own = free[: len(nodes)]
    tree = Segment(nodes, depths, PARENTS, own, slots, few, range(len(nodes)))
    out = model.forward(Rows.of([*segments[:2], tree, *segments[2:]]), kv).logits
    for node in range(len(nodes)):
        path = [node]
        while PARENTS[path[-1]] >= 0:
            path.append(PARENTS[path[-1]])
        line = text + [nodes[i] for i in reversed(path)]
        alone = texts.logits(model, line, [context] + [1] * len(path), few)
        assert torch.equal(out[sum(lengths[:2]) + node], alone[-1]), node


def test_a_row_that_runs_no_expert_has_numbers(model: Model, counts: list[int | None]) -> None:
    """As rows of padding do; where there is no shared expert, only the hidden state is left. The kernels
    pad no rows and refuse it."""
    groups = 0 if len(counts) > 1 else None
    if groups == 0 and isinstance(model, CpuDecoder):
        with pytest.raises(ValueError, match="row 0 runs no expert, and the model has no shared"):
            texts.logits(model, texts.tokens_of(5), groups=groups)
        return
    assert texts.logits(model, texts.tokens_of(5), groups=groups).isfinite().all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("family", "fields"),
    [("qwen3_moe", {}), ("qwen3_moe", {"norm_topk_prob": False}), ("gpt_oss", {})],
    ids=str,
)
def test_fewer_experts_are_a_model_that_has_no_more(
    tmp_path: Path, family: str, fields: dict[str, bool], count: int, kernels: bool
) -> None:
    """The best of the row, their weights divided by their own sum where the model does so."""
    tokens = texts.tokens_of(30)
    wide = checkpoints.write_family(tmp_path / "wide", family, **fields)
    narrow = checkpoints.write_family(
        tmp_path / "narrow", family, **fields, num_experts_per_tok=count
    )
    got = texts.logits(load(wide, kernels), tokens, groups=count)
    torch.testing.assert_close(got, texts.logits(load(narrow, kernels), tokens), rtol=0, atol=1e-4)

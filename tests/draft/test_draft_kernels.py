"""A head on the compiled kernels is the head in torch, up to its formats; and a text's drafts are its own."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_tools import write_kin
from head_tools import chain_probs, check_scores, likeliest, node_paths, tiny_weights
from kernel_tools import compiled

from fastslow.draft.head import runner as runner_module
from fastslow.draft.head.config import read_ends, stored_ends
from fastslow.draft.head.head import TrainedHead
from fastslow.draft.head.runner import HeadRunner, KernelRunner, TorchRunner
from fastslow.engine.backends.cpu import store
from fastslow.engine.backends.cpu.draft_head import DraftKernels, NewRows, TreeLimits
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.types import Floats, Tree

pytestmark = compiled
VOCABULARY, HIDDEN = 90, 64
FIELDS: dict[str, Any] = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "hidden_size": HIDDEN}
ROWS = 60
MAPS = Path("/proc/self/maps")


def made(
    wide_target: Path, form: Format = Format.INT8, window: int = 512, size: int = 40
) -> tuple[KernelRunner, TorchRunner]:
    """The same head on the kernels and in torch."""
    config, weights = tiny_weights(wide_target, size=size)
    config = replace(config, window=window)
    # as in a file; torch then computes with what is left of them
    weights = {n: w.bfloat16() if w.is_floating_point() else w for n, w in weights.items()}
    ends = read_ends(wide_target)
    return KernelRunner(config, weights, ends, form), TorchRunner(TrainedHead(config, weights, ends))


def rows(seed: int = 0, count: int = ROWS) -> tuple[torch.Tensor, list[int]]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 2 * HIDDEN, generator=random)
    return features, torch.randint(VOCABULARY, (count,), generator=random).tolist()


def begin(runner: HeadRunner, seed: int = 0, parts: tuple[int, ...] = (40, 20)) -> int:
    """A text of some rows that are only read, as a prompt's, a gap, and rows to draft from."""
    features, after = rows(seed)
    text, first = runner.open(7), 0
    runner.add_tokens(text, after[:20])
    runner.add_tokens(text, after[20:])
    for size in parts[:-1]:
        own = slice(first, first + size)
        runner.read(NewRows([text], [size], after[own], features[own]))
        assert not grow(runner, text)[0].tokens
        first += size
    runner.skip(text, 2 * ROWS)
    take(runner, text, features[first:], after[first:])
    return text


def take(runner: HeadRunner, text: int, features: torch.Tensor, after: list[int]) -> None:
    runner.grow(NewRows([text], [len(after)], after, features), TreeLimits([0], 1, 1, [0.0]))


def grow(runner: HeadRunner, *texts: int, nodes: int = 9, least: float = 0.0) -> list[Tree]:
    count = len(texts)
    nothing = torch.empty(0, 2 * HIDDEN)
    limits = TreeLimits([nodes] * count, 3, 4, [least] * count)
    return runner.grow(NewRows(texts, [0] * count, [], nothing), limits)


def logits(runner: HeadRunner, text: int) -> Floats:
    return runner.logits(text).copy()


@pytest.mark.parametrize(
    ("form", "limit", "parts"), [(Format.INT8, 0.04, (1, 7, 32, 20)), (Format.INT4, 0.33, (40, 20))], ids=str
)
def test_chains_have_the_logits_of_torch(wide_target: Path, form: Format, limit: float, parts: tuple[int, ...]) -> None:
    kernels, torch_ = made(wide_target, form)
    mine, theirs = begin(kernels, parts=parts), begin(torch_)

    def error() -> float:
        wanted = logits(torch_, theirs)
        return float(np.linalg.norm(logits(kernels, mine) - wanted) / np.linalg.norm(wanted - wanted.mean()))

    assert kernels.vocab_ids(mine).tolist() == torch_.vocab_ids(theirs).tolist()
    for depth, token in enumerate((3, 60, 12, 5)):  # each step feeds on the errors of the last
        assert 0 < error() < limit * (1 + depth / 4)
        kernels.advance([mine], [token])
        torch_.advance([theirs], [token])
    grow(kernels, mine, nodes=0)  # the chain is forgotten
    grow(torch_, theirs, nodes=0)
    assert error() < limit


def test_long_prompts_are_read_in_parts_and_together(wide_target: Path) -> None:
    kernels, _ = made(wide_target, window=1400)
    features, after = rows(3, 1300)
    texts = [kernels.open(0) for _ in range(3)]
    both = features[[*range(1300), *range(1200)]]
    kernels.read(NewRows(texts[:2], [1300, 1200], [*after, *after[:1200]], both))
    kernels.read(NewRows([texts[1]], [100], after[1200:], features[1200:]))
    for first in range(0, 1300, 130):
        own = slice(first, first + 130)
        kernels.read(NewRows(texts[2:], [130], after[own], features[own]))
    more, last = rows(4, 2)
    for text in texts:
        take(kernels, text, more, last)
    trees = [grow(kernels, text)[0] for text in texts]
    assert trees[0] == trees[1] == trees[2] and trees[0].tokens


def test_a_score_is_the_likelihood_of_its_path_and_the_likeliest_comes_first(wide_target: Path) -> None:
    for runner in made(wide_target, Format.INT4):
        text = begin(runner)
        (tree,) = grow(runner, text, nodes=14)
        check_scores(runner, text, tree)
        assert tree.scores is not None
        for parent, score in zip(tree.parents, tree.scores):
            first = tree.parents.index(parent)  # of its siblings
            assert tree.scores[first] >= score
            assert parent == -1 or first == parent + 1
        (small,) = runner.grow(NewRows([text], [0], [], torch.empty(0, 2 * HIDDEN)), TreeLimits([6], 8, 3, [0.0]))
        assert {*node_paths(small)} == likeliest(partial(chain_probs, runner, text), 6, 8, 3)


@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_depends_on_the_batch_or_on_threads(wide_target: Path, threads: int) -> None:
    kernels, _ = made(wide_target)
    singles = [begin(kernels, seed, (ROWS,)) for seed in range(5)]
    alone = [(grow(kernels, text)[0], logits(kernels, text)) for text in singles]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    texts = [kernels.open(7) for _ in range(5)]
    features, after = zip(*(rows(seed) for seed in range(5)))
    for text, words in zip(texts, after):
        kernels.add_tokens(text, words)
        kernels.skip(text, 2 * ROWS)
    new = NewRows(texts, [ROWS] * 5, [token for tokens in after for token in tokens], torch.cat(features))
    trees = kernels.grow(new, TreeLimits([9] * 5, 3, 4, [0.0] * 5))
    together = [(tree, logits(kernels, text)) for tree, text in zip(trees, texts)]
    kernels.advance(texts, [1, 2, 3, 4, 5])
    torch.set_num_threads(before)
    for (tree, found), (own, wanted) in zip(together, alone):
        assert tree == own and np.array_equal(found, wanted)
    for token, (text, single) in enumerate(zip(texts, singles), start=1):
        kernels.advance([single], [token])
        assert np.array_equal(logits(kernels, single), logits(kernels, text))


def test_rows_beyond_the_window_are_given_back_and_not_seen(wide_target: Path) -> None:
    """A window begins with a block of 16: 32 rows of 100 are those of a text of the last 20."""
    kernels, _ = made(wide_target, window=32)
    features, after = rows(count=100)
    long, short = kernels.open(0), kernels.open(80)
    for text in (long, short):
        kernels.add_tokens(text, after)
    for at in range(99):
        take(kernels, long, features[at : at + 1], after[at : at + 1])
    take(kernels, short, features[80:99], after[80:99])
    for text in (long, short):
        take(kernels, text, features[99:], after[99:])
    assert np.array_equal(logits(kernels, long), logits(kernels, short))
    take(kernels, long, features, after)
    assert np.isfinite(logits(kernels, long)).all()
    kernels.close(long)
    with pytest.raises(ValueError, match="text 0 is not open"):
        DraftKernels.close(kernels, long)


def test_a_text_without_rows_or_of_no_numbers_gets_no_tree(wide_target: Path) -> None:
    none = NewRows([], [], [], torch.empty(0, 2 * HIDDEN))
    for runner in made(wide_target):
        fresh, known = runner.open(0), begin(runner)
        trees = grow(runner, fresh, known)
        assert not trees[0].tokens and trees[1].tokens and runner.grow(none, TreeLimits([], 2, 2, [])) == []
        features, after = rows()
        features[5] = torch.nan
        take(runner, known, features[:6], after[:6])
        assert isinstance(runner, TorchRunner) or not grow(runner, known)[0].tokens


@pytest.mark.skipif(not MAPS.is_file(), reason="the system does not tell what is mapped")
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_reads_its_targets_ends_where_they_are(wide_target: Path, tmp_path: Path, tied: bool) -> None:
    """The same drafts as with both ends in memory, and the file is not mapped."""
    folder = write_kin(tmp_path / "far", **FIELDS, tie_word_embeddings=tied)
    config, weights = tiny_weights(wide_target, size=40)
    features, after = rows()
    grown = []
    for find in (stored_ends, read_ends):
        ends = find(folder)
        assert ends is not None and (ends.head is ends.embedding) == tied
        if find is stored_ends:
            with pytest.raises(OSError, match=f"ends before row {10**9}"):
                ends.embedding[torch.tensor([10**9])]
        runner = runner_module.runner_of(config, weights, ends)
        assert isinstance(runner, KernelRunner) and (str(folder) in MAPS.read_text()) == (find is read_ends)
        text = begin(runner)
        runner.add_tokens(text, [80, 81])
        take(runner, text, features[:6], after[:6])
        grown.append(grow(runner, text)[0])
    assert grown[0] == grown[1] and grown[0].tokens


def test_a_head_is_the_same_without_huge_pages_and_runs_in_torch_without_kernels(
    wide_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastslow.draft.head.runner.library.available", lambda: False)
    assert isinstance(runner_module.runner_of(*tiny_weights(wide_target), read_ends(wide_target)), TorchRunner)
    trees = []
    for _ in range(2):
        runner, _ = made(wide_target)
        trees.append(grow(runner, begin(runner))[0])
        monkeypatch.setattr(store, "HUGE", tmp_path / "nothing")
    assert trees[0].tokens and trees[0] == trees[1]

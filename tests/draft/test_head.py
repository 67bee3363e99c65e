"""A draft head by itself: one step at a time it computes what training unrolls; trees; files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from head_tools import tiny_weights, write_head
from safetensors.torch import save_file

from fastslow.draft.head.config import read_ends, read_head
from fastslow.draft.head.head import TrainedHead
from fastslow.draft.head.layer import HeadKV
from fastslow.draft.head.state import RequestVocab
from fastslow.draft.head.tree import GrowingTree, grow_trees
from fastslow.tools.train_head.train import draft_vocabulary
from fastslow.tools.train_head.unroll import unroll


def rows(count: int, head: TrainedHead, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(count, len(head.config.layers) * head.config.hidden, generator=random)
    return features, torch.randint(12, (count,), generator=random).tolist()


@pytest.mark.parametrize(
    ("first", "cut", "window"), [(0, 1, 512), (0, 4, 6), (0, 9, 512), (0, 9, 6), (4, 7, 512)]
)
def test_drafting_computes_what_training_unrolled(
    target: Path, first: int, cut: int, window: int
) -> None:
    """A context that begins late is a text whose first rows are invisible."""
    config, weights = tiny_weights(target)
    head = TrainedHead(replace(config, window=window), weights, read_ends(target))
    features, after = rows(14, head)
    embedded = head._embedding[torch.tensor(after)].float()
    visible = (torch.arange(14) >= first)[None]
    steps = [s[0] for s in unroll(head._layer, features[None], embedded[None], visible, 4)]
    context, start = HeadKV(head.config, first), first
    for end in (3, cut) if 3 < cut else (cut,):
        if start < end:
            hidden = head.read(features[start:end], after[start:end], [context], [end - start])
        start = max(start, end)
    assert torch.allclose(hidden[0], steps[0][cut - 1], atol=1e-4)
    for depth in range(1, 4):
        hidden = head.step(hidden, [after[cut - 1 + depth]], [context], [[depth - 2]])
        assert torch.allclose(hidden[0], steps[depth][cut - 1 + depth], atol=1e-4), depth
    # The draft is forgotten: the next rows stand where it stood.
    fresh = slice(cut, cut + 2)
    hidden = head.read(features[fresh], after[fresh], [context], [2])
    assert torch.allclose(hidden[0], steps[0][cut + 1], atol=1e-4)


def test_trees_keep_the_likeliest_paths(target: Path) -> None:
    plain = TrainedHead(*tiny_weights(target), read_ends(target))
    features, after = rows(5, plain)
    kv = HeadKV(plain.config, 0)
    hidden = plain.read(features, after, [kv], [5])
    vocab = RequestVocab(plain.vocab)
    vocab.add([*after, 11])
    assert len(vocab.ids) > len(plain.vocab.ids)
    scores: dict[tuple[int, ...], float] = {}

    def explore(path: tuple[int, ...], score: float) -> None:
        own, state = HeadKV(plain.config, 0), None
        state = plain.read(features, after, [own], [5])
        for depth, place in enumerate(path):
            token = int(vocab.ids[place])
            state = plain.step(state, [token], [own], [[depth - 1]])
        log_q = torch.log_softmax(plain.logits(state, [vocab], [1])[0][0], -1)
        for place in range(len(log_q)):
            scores[(*path, place)] = score + float(log_q[place])
            if len(path) < 2:
                explore((*path, place), score + float(log_q[place]))

    explore((), 0.0)
    best = sorted(scores, key=lambda path: -scores[path])[:6]
    growing = GrowingTree(kv, vocab, hidden[0], 6)
    (tree,) = grow_trees(plain, [growing], width=12, depth=3)
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents):
        place = int((vocab.ids == token).nonzero()[0])
        found.append((*(found[parent] if parent >= 0 else ()), place))
    assert sorted(found) == sorted(best)
    assert tree.scores is not None
    assert list(tree.scores) == pytest.approx([math.exp(scores[path]) for path in found], rel=1e-4)
    assert grow_trees(plain, [], 2, 2) == []


def test_files_are_read_back_and_bad_ones_refused(target: Path, tmp_path: Path) -> None:
    config, weights = tiny_weights(target)
    path = write_head(tmp_path / "head.safetensors", config, weights)
    theirs, table = read_head(path)
    assert theirs == config and all(torch.equal(table[name], weights[name]) for name in table)
    assert set(table) == set(config.shapes())
    path.write_bytes(path.read_bytes()[:1000])
    for broken in (path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_head(broken)
    save_file(weights, path)
    with pytest.raises(ValueError, match="metadata field kind=None must be 'fastslow-head'"):
        read_head(path)


def test_the_draft_vocabulary_is_what_is_common() -> None:
    assert draft_vocabulary([9, 9, 9, 7, 7, 30], 2, 50, least=2).tolist() == [7, 9]
    assert draft_vocabulary([9] * 3 + [30] * 2, 5, 50).tolist() == [0, 1, 2, 3, 9]


def test_a_head_knows_its_draft_tokens(target: Path) -> None:
    head = TrainedHead(*tiny_weights(target, size=7), read_ends(target))
    outside = next(token for token in range(12) if token not in head.vocab.known)
    inside = int(head.vocab.ids[0])
    vocab, none = RequestVocab(head.vocab), RequestVocab(head.vocab)
    vocab.add([inside, outside, outside])
    vocab.add([inside, outside])
    assert head.vocab_size == 12 and vocab.ids.tolist() == [*none.ids.tolist(), outside]
    hidden = torch.randn(3, head.config.hidden)
    mine, plain = head.logits(hidden, [vocab, none], [2, 1])
    assert mine.shape == (2, 8) and plain.shape == (1, 7)
    ready = head._layer.final_norm(hidden[:2])
    assert torch.allclose(mine[:, -1], ready @ read_ends(target).head[outside].float(), atol=1e-4)

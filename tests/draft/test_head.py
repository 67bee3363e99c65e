"""A draft head's file and its tokens; what would reach outside the kernels' memory is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from head_tools import tiny_weights, write_head
from kernel_tools import compiled
from safetensors.torch import save_file
from torch import Tensor

from fastslow.draft.head.config import HeadConfig, read_ends, read_head
from fastslow.draft.head.head import TrainedHead
from fastslow.draft.head.runner import KernelRunner, load_head
from fastslow.draft.head.state import RequestVocab
from fastslow.engine.backends.cpu.draft_head import NewRows, TreeLimits
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.tools.train_head.train import draft_vocabulary

VOCABULARY, HIDDEN = 90, 64
FAR = 10**12


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_of_a_file_are_read_one_by_one(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix = torch.randn(9, 5).to(dtype)
    save_file({"other": torch.ones(3), "head": matrix}, tmp_path / "model.safetensors")
    rows = RowFile.of_tensor(tmp_path / "model.safetensors", "head")
    assert rows is not None and len(rows) == 9
    assert torch.equal(rows[torch.tensor([8, 0, 3])], matrix[[8, 0, 3]])
    assert rows.floats([8, 0, 3]).tolist() == matrix[[8, 0, 3]].float().tolist()
    with pytest.raises(OSError, match="ends before row 10"):
        rows.floats([10])


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("heads", 0, r"heads=0 must be a whole number in 1\.\.1024"),
        ("prompt", -1, r"prompt=-1 must be a whole number in 0\.\."),
        ("kv_heads", 3, "heads=2 must be a multiple of kv_heads=3"),
        ("head_dim", 2**40, "head_dim=1099511627776 must be a whole number"),
        ("head_dim", 15, "head_dim=15 even"),
        ("window", 2**31, r"window=2147483648 must be a whole number in 1\.\.16777216"),
        ("layers", [], "must name at least one target layer"),
        ("layers", [0] * 2**15, "inputs=2097152 must be a whole number"),
        ("rope_theta", 0.0, "rope_theta=0.0 must be a number above 0"),
        ("eps", float("nan"), "eps=nan must be a number above 0"),
        pytest.param("eps", 10**400, "it has a number of 401 digits", id="long eps"),
        pytest.param("prompt", "x" * 10**5, "must be a whole number", id="long text as prompt"),
    ],
)
def test_a_shape_beyond_the_limits_is_refused(
    wide_target: Path, tmp_path: Path, field: str, value: Any, sentence: str
) -> None:
    config, weights = tiny_weights(wide_target)
    fields = asdict(config) | {"layers": list(config.layers), field: value}
    path = tmp_path / "head.safetensors"
    save_file(weights, path, {"kind": "fastslow-head", "config": json.dumps(fields)})
    with pytest.raises(ValueError, match=f"head {path}: .*{sentence}") as caught:
        read_head(path)
    assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("qkv", lambda t: None, "lacks tensor qkv of shape"),
        ("fuse", lambda t: t[1:].clone(), "tensor fuse is"),
        ("tokens", lambda t: t - 100, "token -.* of tensor tokens must be at least 0"),
        ("tokens", lambda t: t.double(), "tensor tokens is of torch.float64, and must hold whole"),
        ("qkv", lambda t: t.to(torch.int8), "tensor qkv is of torch.int8, and must hold floats"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    wide_target: Path, tmp_path: Path, name: str, change: Callable[[Tensor], Any], sentence: str
) -> None:
    config, weights = tiny_weights(wide_target)
    changed = {n: t for n, t in (weights | {name: change(weights[name])}).items() if t is not None}
    with pytest.raises(ValueError, match=sentence):
        load_head(write_head(tmp_path / "h", config, changed), wide_target)


def test_a_head_of_another_target_is_refused(wide_target: Path, tmp_path: Path) -> None:
    config, weights = tiny_weights(wide_target)
    wide = replace(config, hidden=96)
    shapes = {name: torch.zeros(shape) for name, shape in wide.shapes().items()}
    path = write_head(tmp_path / "wide.safetensors", wide, shapes | {"tokens": weights["tokens"]})
    with pytest.raises(ValueError, match="is of a target with hidden_size=96 and a vocabulary"):
        load_head(path, wide_target)
    path = write_head(tmp_path / "deep.safetensors", replace(config, layers=(0, 7)), weights)
    with pytest.raises(ValueError, match="reads layer 7 of its target, which has 2"):
        load_head(path, wide_target)


@compiled
@pytest.mark.parametrize(
    ("changes", "tokens", "sentence"),
    [
        ({"heads": 130, "kv_heads": 2, "head_dim": 4}, 0, "heads_per_kv_head=65 must be"),
        ({"window": 2**31}, 0, "window=2147483648 must be"),
        ({}, -1, "drafted token -1 must be in 0..89"),
        ({}, 90, "drafted token 90 must be in 0..89"),
    ],
)
def test_the_kernels_refuse_such_heads_themselves(
    wide_target: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, tokens: int, sentence: str
) -> None:  # fmt: skip
    config, _ = tiny_weights(wide_target)
    config = replace(config, **changes)
    monkeypatch.setattr(HeadConfig, "check", lambda self: None)
    ends = read_ends(wide_target)
    if tokens:
        ends = replace(ends, head=torch.cat([ends.head, ends.head]))  # has rows for any of them
    weights = {name: torch.zeros(shape) for name, shape in config.shapes().items()}
    weights["tokens"] = torch.arange(config.vocabulary)
    weights["tokens"][-1] = tokens or config.vocabulary
    with pytest.raises(ValueError, match=sentence):
        KernelRunner(config, weights, ends)


@compiled
def test_calls_that_reach_outside_are_refused_and_the_next_one_drafts(wide_target: Path) -> None:
    head = KernelRunner(*tiny_weights(wide_target), read_ends(wide_target))
    torch.manual_seed(0)
    features = torch.randn(3, 2 * HIDDEN)
    text = head.open(0)

    def grow(
        texts: list[int], sizes: list[int], after: list[int], nodes: list[int], width: int = 2,
        depth: int = 3,
    ) -> Any:  # fmt: skip
        limits = TreeLimits(nodes, width, depth, [0.0] * len(nodes))
        return head.grow(NewRows(texts, sizes, after, features[: len(after)]), limits)

    want = grow([text], [3], [1, 2, 3], [6])
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: grow([text], [3], [1, 2, -3], [6]), r"token -3 must be in 0\.\.89"),
        (lambda: grow([text], [3], [1, 2, FAR], [6]), "token 1000000000000 must be"),
        (lambda: grow([text], [2], [1, 2, 3], [6]), "texts take 2 rows, and 3 are given"),
        (lambda: grow([text], [-1], [1], [6]), "number of rows -1 must be"),
        (lambda: grow([text, text], [1, 2], [1, 2, 3], [6, 6]), f"text {text} comes twice"),
        (lambda: grow([7], [1], [1], [6]), "text 7 is not open"),
        (lambda: grow([text], [1], [1], [-6]), "number of nodes -6 must be"),
        (lambda: grow([text], [1], [1], [2**40]), "nodes=1099511627776 must be"),
        (lambda: grow([text], [1], [1], [6], width=0), "width=0 must be"),
        (lambda: grow([text], [1], [1], [6], width=2**31), "width=2147483648 must be"),
        (lambda: grow([text], [1], [1], [6], depth=-1), "depth=-1 must be|nodes=-1 must be"),
        (lambda: head.read(NewRows([text], [1], [90], features[:1])), "token 90 must be"),
        (lambda: head.read(NewRows([text], [1], [9], features[:2])), "features must be 128 of"),
        (lambda: head.advance([text], [-1]), "token -1 must be"),
        (lambda: head.advance([head.open(0)], [1]), "has no row to draft from"),
        (lambda: head.logits(99), "text 99 is not open"),
        (lambda: head.skip(text, -1), r"position=-1 must be in 0\.\.16777216"),
        (lambda: head.open(2**24 + 1), "position=16777217 must be"),
        (lambda: head.fork(text, 4), "position=-1 must be"),
        (lambda: head.fork(text, -1), "drop=-1 must be at least 0"),
        (lambda: head.extend_vocab(text, [-1], features[:1, :HIDDEN].numpy()), "token -1 must be"),
        (lambda: head.extend_vocab(text, [1, 2], features[:1, :HIDDEN].numpy()), "rows of the head must"),
    ]
    for call, sentence in calls:
        with pytest.raises(ValueError, match=sentence):
            call()
    assert grow([text], [0], [], [6]) == want

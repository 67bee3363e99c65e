"""Draft heads for tiny targets."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributions import chi_square_fits, plain_probs, text_probs
from engine_tools import Ask, Bench, Setting, answer
from kernel_tools import wanted
from numpy.typing import NDArray
from reference_model import ReferenceModel
from safetensors.torch import save_file
from torch import Tensor

from fastslow.draft.head.config import MATRICES, NORMS, HeadConfig, read_ends
from fastslow.draft.head.head import TrainedHead
from fastslow.draft.head.runner import HeadRunner, KernelRunner, TorchRunner
from fastslow.engine.backends.cpu.draft_head import NewRows, TreeLimits
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.types import Tree
from fastslow.tools.train_head.train import draft_vocabulary, first_weights

PROMPTS = [tuple(np.random.default_rng(n).integers(3, 12, n).tolist()) for n in (3, 21, 9, 40, 6)]
RUNNERS = ("torch", "kernels") if wanted() else ("torch",)


def tiny_weights(
    target: Path, layers: tuple[int, ...] = (0, 1), size: int = 10, seed: int = 0
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """An untrained head whose every part matters."""
    tokens = draft_vocabulary([5, 6, 7, 8], size, max(12, size))
    config, weights = first_weights(target, layers, tokens, seed)
    random = torch.Generator().manual_seed(seed)
    for name in (*MATRICES, *NORMS):
        change = torch.randn(weights[name].shape, generator=random)
        weights[name] = weights[name] + change * (0.2 if name in NORMS else 0.1)
    return config, weights


def tiny_runner(target: Path, kind: str = "torch", layers: tuple[int, ...] = (0, 1), **fields: Any) -> HeadRunner:
    """A head in torch or on the kernels; `fields` are of its config."""
    config, weights = tiny_weights(target, layers)
    config = replace(config, **fields)
    if kind == "torch":
        return TorchRunner(TrainedHead(config, weights, read_ends(target)))
    return KernelRunner(config, weights, read_ends(target))


def write_head(path: Path, config: HeadConfig, weights: dict[str, Tensor]) -> Path:
    save_file(weights, path, config.metadata())
    return path


def check_sampled_answers(bench: Bench, folder: Path, kind: str, prompt: tuple[int, ...]) -> int:
    """Three sampled tokens, 400 times: their distribution is the target's, of all 12 tokens. Gives how many
    drafted tokens were accepted."""
    params = SamplingParams(max_tokens=4, temperature=1.0, ignore_eos=True)
    runs = [Ask(prompt, params, kind, nodes=4, seed=seed) for seed in range(400)]
    requests = bench.run(runs, Setting(pages=4000))
    texts = [tuple(answer(r)[:3]) for r in requests]
    chi_square_fits(sampled_law(folder, prompt, params), texts)
    return sum(r.spec_stats.accepted for r in requests)


@cache
def sampled_law(folder: Path, prompt: tuple[int, ...], params: SamplingParams) -> NDArray[np.float64]:
    """Of all texts of three tokens after a prompt, by a model of 12 tokens."""
    plain = ReferenceModel(folder)

    @cache
    def probs(begun: tuple[int, ...]) -> NDArray[np.float64]:
        text = [*prompt, *begun]
        return plain_probs(plain.logits(text, None)[-1].tolist(), text, len(prompt), params)

    return text_probs(probs, 12, 3)


def chain_probs(runner: HeadRunner, text: int, path: Sequence[int]) -> dict[int, float]:
    """Of the tokens after a path, by the text's chain."""
    nothing = NewRows([text], [0], [], torch.empty(0))
    runner.grow(nothing, TreeLimits([0], 1, 1, [0.0]))  # the chain begins anew
    for token in path:
        runner.advance([text], [token])
    probs = torch.softmax(torch.from_numpy(runner.logits(text)), -1)
    return dict(zip(runner.vocab_ids(text).tolist(), probs.tolist(), strict=True))


def check_scores(runner: HeadRunner, text: int, tree: Tree) -> None:
    """A node's score is the likelihood of its path, by the text's chain."""
    assert tree.scores is not None and max(tree.parents) >= 0
    for path, score in zip(node_paths(tree), tree.scores):
        steps = [chain_probs(runner, text, path[:n])[token] for n, token in enumerate(path)]
        assert score == pytest.approx(math.prod(steps), rel=1e-4)


def likeliest(
    probs_after: Callable[[tuple[int, ...]], Mapping[int, float]], nodes: int, width: int, depth: int = 99
) -> set[tuple[int, ...]]:
    """The likeliest paths, one node at a time, each computed from its beginning."""
    heap: list[tuple[float, tuple[int, ...]]] = [(-1.0, ())]
    found: set[tuple[int, ...]] = set()
    while len(found) <= nodes:
        chance, path = heapq.heappop(heap)
        found.add(path)
        if len(path) < depth:
            probs = probs_after(path)
            for token in sorted(probs, key=lambda x: -probs[x])[:width]:
                heapq.heappush(heap, (chance * probs[token], (*path, token)))
    return found - {()}


def node_paths(tree: Tree) -> list[tuple[int, ...]]:
    """The tokens from the root to each node; siblings differ, and parents come first."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.tokens, tree.parents):
        assert parent < len(found)
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found), "siblings that are the same"
    return found


class View:
    """A request as a drafter sees it, without an engine; `fields` take the place of the usual ones."""

    def __init__(self, number: int, tokens: Sequence[int], **fields: Any) -> None:
        self.id, self.tokens, self.prompt_length = number, list(tokens), len(tokens)
        self.params, self.seed, self.end_ids = SamplingParams(), number, frozenset[int]()
        self.reproducible, self.thinking, self.grammar, self.groups = False, None, None, None
        self.thought_params = None
        self.memory_key: str | None = None
        self.shared = True
        self.speculation, self.drafter = Speculation(nodes=3), "head"
        self.prediction: Sequence[int] = ()
        self.computed, self.max_len = len(tokens) - 1, len(tokens) + 99
        self.__dict__.update(fields)

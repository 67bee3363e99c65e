"""Published heads on the compiled kernels: the logits of a plain forward, up to their formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_tools import SHAPES, ReferenceEagle, eagle_text, exact_head, write_eagle
from engine_tools import write_kin
from kernel_tools import compiled
from loguru import logger

from fastslow.draft.head.eagle_file import embedding_of, read_eagle
from fastslow.draft.head.runner import KernelRunner, TorchRunner, load_head
from fastslow.draft.head.target import HeadlessEnds
from fastslow.engine.backends.cpu.draft_head import NewRows, TreeLimits
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.model.config import ModelConfig

pytestmark = compiled
NOTHING = TreeLimits([0], 1, 1, [0.0])


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("eagle") / "target"
    return write_kin(made, vocab_size=12, num_hidden_layers=2)


def on_kernels(folder: Path, target: Path, form: Format) -> KernelRunner:
    config, weights = read_eagle(folder, ModelConfig.from_folder(target))
    ends = HeadlessEnds(embedding_of(folder, config, target))
    return KernelRunner(config.shape, weights, ends, form, config.paired())


@pytest.mark.parametrize("form", [Format.FLOAT32, Format.INT4])
@pytest.mark.parametrize(
    "fields",
    [*SHAPES, {"model_type": "qwen3"}, {"rope_scaling": {"type": "linear", "factor": 4.0}}],
    ids=str,
)
def test_logits_along_a_chain(
    tmp_path: Path, target: Path, fields: dict[str, Any], form: Format
) -> None:
    folder = write_eagle(tmp_path / "head", target, "speculators", **fields)
    plain, exact = TorchRunner(exact_head(folder, target)), on_kernels(folder, target, form)
    features, after = eagle_text(exact_head(folder, target), 40)
    texts = {runner: runner.open(3) for runner in (plain, exact)}
    for runner, number in texts.items():
        runner.read(NewRows([number], [30], after[:30], features[:30]))
        runner.grow(NewRows([number], [10], after[30:], features[30:]), NOTHING)
    for token in (3, 11, 0, 7):
        wanted, found = (torch.from_numpy(r.logits(n)).clone() for r, n in texts.items())
        # keys are bfloat16, and so is nothing else of the float32 form
        assert (found - wanted).norm() < (0.02 if form is Format.FLOAT32 else 0.3) * wanted.norm()
        for runner, number in texts.items():
            runner.advance([number], [token])


@pytest.mark.parametrize(
    "fields", [{}, {"norm_before_residual": True, "norm_output": True}], ids=str
)
def test_trees(tmp_path: Path, target: Path, fields: dict[str, Any]) -> None:
    folder = write_eagle(tmp_path / "head", target, **fields)
    runner, plain = on_kernels(folder, target, Format.FLOAT32), ReferenceEagle(folder, target)
    features, after = eagle_text(exact_head(folder, target))
    number = runner.open(0)
    runner.add_tokens(number, after)
    assert runner.vocab_ids(number).tolist() == plain.tokens, "it has no other tokens to draft"
    rows = NewRows([number], [len(after)], after, features)
    tree = runner.grow(rows, TreeLimits([14], 3, 4, [0.0]))[0]
    assert len(tree.tokens) == 14 and len(set(tree.parents)) > 4
    plain.check_scores(tree, features, after, rel=3e-2)  # keys are bfloat16


def test_a_texts_bits_are_its_own(tmp_path: Path, target: Path) -> None:
    """Whatever runs beside it, and however its rows came."""
    runner = on_kernels(write_eagle(tmp_path / "head", target), target, Format.INT4)
    features, after = eagle_text(exact_head(tmp_path / "head", target), 40)
    alone = runner.open(0)
    runner.grow(NewRows([alone], [40], after, features), NOTHING)
    beside, other = runner.open(0), runner.open(9)
    runner.read(NewRows([beside], [17], after[:17], features[:17]))
    both = torch.cat((features[17:], features[:5]))
    rows = NewRows([beside, other], [23, 5], [*after[17:], *after[:5]], both)
    runner.grow(rows, TreeLimits([0, 0], 1, 1, [0.0, 0.0]))
    for texts in ([alone], [beside, other]):
        runner.advance(texts, [4] * len(texts))
    assert runner.logits(alone).tolist() == runner.logits(beside).tolist()


def test_what_the_kernels_do_not_have_runs_in_torch(tmp_path: Path, target: Path) -> None:
    folder = write_eagle(tmp_path / "head", target, "speculators")
    assert type(load_head(folder, target)) is KernelRunner
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    folder = write_eagle(tmp_path / "yarn", target, "speculators", rope_scaling=yarn)
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    try:
        assert type(load_head(folder, target)) is TorchRunner
    finally:
        logger.remove(sink)
    assert any("runs in plain torch" in line for line in lines)


def test_shapes_that_do_not_fit_the_kernels_are_refused(tmp_path: Path, target: Path) -> None:
    config, weights = read_eagle(
        write_eagle(tmp_path / "head", target), ModelConfig.from_folder(target)
    )
    ends = HeadlessEnds(embedding_of(tmp_path / "head", config, target))
    paired = config.paired()
    assert paired is not None
    for wrong, sentence in (
        ({"level": 7}, "features of 64 are no multiple of level=7"),
        ({"frequencies": paired.frequencies[1:]}, "frequencies must be 8 of float64, not 7"),
    ):
        with pytest.raises(ValueError, match=sentence):
            KernelRunner(config.shape, weights, ends, paired=paired._replace(**wrong))

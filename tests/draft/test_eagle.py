"""Published EAGLE-3 heads, in both layouts: the logits of a plain forward, along chains and trees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from eagle_tools import SHAPES, ReferenceEagle, eagle_config, eagle_text, exact_head, write_eagle
from engine_tools import write_kin

from fastslow.draft.head.eagle import EagleConfig
from fastslow.draft.head.runner import TorchRunner, load_head
from fastslow.engine.backends.cpu.draft_head import NewRows, TreeLimits
from fastslow.engine.model.config import ModelConfig

FIELDS: dict[str, Any] = {"vocab_size": 12, "num_hidden_layers": 2}
LAYOUTS = ("original", "speculators")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kin(tmp_path_factory.mktemp("eagle") / "target", **FIELDS)


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        *(("original", fields) for fields in SHAPES),
        *(("speculators", fields) for fields in (*SHAPES[::2], {"model_type": "qwen3"})),
    ],
    ids=str,
)
def test_the_logits_of_a_chain_are_those_of_a_plain_forward(
    tmp_path: Path, target: Path, layout: str, fields: dict[str, Any]
) -> None:
    folder = write_eagle(tmp_path / "head", target, layout, **fields)
    head, plain = exact_head(folder, target), ReferenceEagle(folder, target)
    features, after = eagle_text(head)
    runner = TorchRunner(head)
    number = runner.open(0)
    half = len(after) // 2
    runner.read(NewRows([number], [half], after[:half], features[:half]))
    rows = NewRows([number], [len(after) - half], after[half:], features[half:])
    assert not runner.grow(rows, TreeLimits([0], 1, 1, [0.0]))[0].tokens
    assert runner.vocab_ids(number).tolist() == plain.tokens
    drafted: list[int] = []
    for token in (3, 11, 0, 7):
        wanted = plain.chain(features, after, drafted)[-1]
        assert torch.from_numpy(runner.logits(number)).sub(wanted).abs().max() < 1e-4
        assert wanted.std() > 0.3
        runner.advance([number], [token])
        drafted.append(token)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trees_scores_are_those_of_its_paths(tmp_path: Path, target: Path, layout: str) -> None:
    folder = write_eagle(tmp_path / "head", target, layout, norm_before_residual=True)
    head, plain = exact_head(folder, target), ReferenceEagle(folder, target)
    features, after = eagle_text(head)
    runner = TorchRunner(head)
    number = runner.open(0)
    rows = NewRows([number], [len(after)], after, features)
    tree = runner.grow(rows, TreeLimits([14], 3, 4, [0.0]))[0]
    assert len(tree.tokens) == 14 and len(set(tree.parents)) > 4
    plain.check_scores(tree, features, after, rel=1e-3)


def test_as_it_runs_it_says_nearly_the_same(tmp_path: Path, target: Path) -> None:
    """In whatever numbers the products run in."""
    folder = write_eagle(tmp_path / "head", target)
    runner, plain = load_head(folder, target), ReferenceEagle(folder, target)
    features, after = eagle_text(exact_head(folder, target))
    number = runner.open(0)
    runner.grow(NewRows([number], [len(after)], after, features), TreeLimits([0], 1, 1, [0.0]))
    runner.advance([number], [3])
    wanted = plain.chain(features, after, [3])[-1]
    found = torch.from_numpy(runner.logits(number)).double()
    assert F.cosine_similarity(found, wanted, 0) > 0.98


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [1, 3, 6]}, (0, 2, 5)),
        ({"eagle_aux_hidden_state_layer_ids": None}, (1, 2, 2)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]}}, (1, 3, 5)),
    ],
    ids=str,
)
def test_which_layers_are_read(
    tmp_path: Path, target: Path, fields: dict[str, Any], layers: tuple[int, ...]
) -> None:
    """Published numbers count inputs of layers: 1 is what comes out of the first one."""

    six = replace(ModelConfig.from_folder(target), layers=6)
    raw = {**eagle_config(target), **fields}
    if layers == (1, 2, 2):
        with pytest.raises(ValueError, match="its usual ones are not in a target of 6 layers"):
            EagleConfig.from_json(raw, six)
        six, layers = replace(six, layers=8), (1, 3, 4)
    assert EagleConfig.from_json(raw, six).shape.layers == layers

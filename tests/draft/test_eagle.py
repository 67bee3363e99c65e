"""Published EAGLE-3 heads, in both layouts: a plain forward's logits, in torch and on the kernels; bad files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_tools import (
    SHAPES,
    ReferenceEagle,
    eagle_config,
    eagle_text,
    eagle_weights,
    plain_head,
    write_eagle,
    write_files,
)
from head_tools import check_scores
from kernel_tools import compiled
from torch import Tensor

from fastslow.draft.head.config import StoredEnds
from fastslow.draft.head.eagle import EagleConfig, embedding_of, read_eagle
from fastslow.draft.head.runner import KernelRunner, TorchRunner, load_head
from fastslow.engine.backends.cpu.draft_head import NewRows, TreeLimits
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.model.config import ModelConfig

Fields = dict[str, Any]
LAYOUTS = ("original", "speculators")
FORMS = (Format.FLOAT32, Format.INT4)
NOTHING = TreeLimits([0], 1, 1, [0.0])
IDS = "eagle_aux_hidden_state_layer_ids"


@pytest.mark.parametrize(("layout", "fields"), [
    *(("original", fields) for fields in SHAPES),
    *(("speculators", fields) for fields in (*SHAPES[::2], {"model_type": "qwen3"})),
], ids=str)  # fmt: skip
def test_the_logits_of_a_chain_are_those_of_a_plain_forward(
    tmp_path: Path, target: Path, layout: str, fields: Fields
) -> None:
    folder = write_eagle(tmp_path / "head", target, layout, **fields)
    head, plain = plain_head(folder, target), ReferenceEagle(folder, target)
    features, after = eagle_text(head)
    runner = TorchRunner(head)
    number, half = runner.open(0), len(after) // 2
    runner.read(NewRows([number], [half], after[:half], features[:half]))
    assert not runner.grow(NewRows([number], [len(after) - half], after[half:], features[half:]), NOTHING)[0].tokens
    assert runner.vocab_ids(number).tolist() == plain.tokens
    drafted: list[int] = []
    for token in (3, 11, 0, 7):
        wanted = plain.chain(features, after, drafted)[-1]
        assert torch.from_numpy(runner.logits(number)).sub(wanted).abs().max() < 1e-4 and wanted.std() > 0.3
        runner.advance([number], [token])
        drafted.append(token)


@pytest.mark.parametrize(("fields", "count", "layers"), [
    ({IDS: [1, 3, 6]}, 6, (0, 2, 5)), ({IDS: None}, 8, (1, 3, 4)), ({IDS: None}, 6, None),
    ({"eagle_config": {IDS: [1, 3, 5]}}, 6, (1, 3, 5)),
], ids=str)  # fmt: skip
def test_which_layers_are_read(target: Path, fields: Fields, count: int, layers: tuple[int, ...] | None) -> None:
    """Published numbers count inputs of layers: 1 is what comes out of the first one."""
    config = ModelConfig.from_folder(target)
    config = replace(config, layers=config.layers[:1] * count)
    raw = {**eagle_config(target), **fields}
    if layers is None:
        with pytest.raises(ValueError, match="its usual ones are not in a target of 6 layers"):
            EagleConfig.from_json(raw, config)
    else:
        assert EagleConfig.from_json(raw, config).shape.layers == layers


def on_kernels(folder: Path, target: Path, form: Format) -> KernelRunner:
    config, weights = read_eagle(folder, ModelConfig.from_folder(target))
    ends = StoredEnds(embedding_of(folder, config, target))
    return KernelRunner(config.shape, weights, ends, form, config.paired())


@compiled
@pytest.mark.parametrize(("fields", "form"), [
    *((fields, FORMS[n % 2]) for n, fields in enumerate(SHAPES)),
    ({"model_type": "qwen3"}, FORMS[0]),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, FORMS[1]),
], ids=str)  # fmt: skip
def test_the_kernels_have_the_logits_of_torch_and_a_texts_bits_are_its_own(
    tmp_path: Path, target: Path, fields: Fields, form: Format
) -> None:
    """Whatever runs beside a text, and however its rows came."""
    folder = write_eagle(tmp_path / "head", target, "speculators", **fields)
    plain, fast = TorchRunner(plain_head(folder, target)), on_kernels(folder, target, form)
    features, after = eagle_text(plain_head(folder, target), 40)
    reference, alone = plain.open(3), fast.open(3)
    for runner, number in ((plain, reference), (fast, alone)):
        runner.read(NewRows([number], [30], after[:30], features[:30]))
        runner.grow(NewRows([number], [10], after[30:], features[30:]), NOTHING)
    beside, other = fast.open(3), fast.open(9)
    fast.read(NewRows([beside], [17], after[:17], features[:17]))
    both = torch.cat((features[17:], features[:5]))
    rows = NewRows([beside, other], [23, 5], [*after[17:], *after[:5]], both)
    fast.grow(rows, TreeLimits([0, 0], 1, 1, [0.0, 0.0]))
    for token in (3, 11, 0, 7):
        wanted, found = (torch.from_numpy(r.logits(n)).clone() for r, n in ((plain, reference), (fast, alone)))
        # keys are bfloat16, and so is nothing else of the float32 form
        assert (found - wanted).norm() < (0.02 if form is Format.FLOAT32 else 0.3) * wanted.norm()
        plain.advance([reference], [token])
        fast.advance([alone], [token])
        fast.advance([beside, other], [token, token])
        assert fast.logits(alone).tolist() == fast.logits(beside).tolist()


@compiled
def test_what_the_kernels_do_not_have_runs_in_torch(tmp_path: Path, target: Path, logged: list[str]) -> None:
    folder = write_eagle(tmp_path / "head", target, "speculators")
    assert type(load_head(folder, target)) is KernelRunner
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    folder = write_eagle(tmp_path / "yarn", target, "speculators", rope_scaling=yarn)
    assert type(load_head(folder, target)) is TorchRunner
    assert any("runs in plain torch" in line for line in logged)


@pytest.mark.parametrize("kind", ["torch", pytest.param("kernels", marks=compiled)])
@pytest.mark.parametrize(
    ("layout", "fields"),
    [("original", {}), ("speculators", {"norm_before_residual": True, "norm_output": True})],
    ids=str,
)
def test_a_trees_scores_are_those_of_its_paths(
    tmp_path: Path, target: Path, layout: str, fields: Fields, kind: str
) -> None:
    folder = write_eagle(tmp_path / "head", target, layout, **fields)
    head = plain_head(folder, target)
    runner = TorchRunner(head) if kind == "torch" else on_kernels(folder, target, FORMS[0])
    features, after = eagle_text(head)
    number = runner.open(0)
    runner.add_tokens(number, after)
    assert runner.vocab_ids(number).tolist() == head.vocab.ids.tolist(), "it drafts no others"
    tree = runner.grow(NewRows([number], [len(after)], after, features), TreeLimits([14], 3, 4, [0.0]))[0]
    assert len(tree.tokens) == 14 and len(set(tree.parents)) > 4
    check_scores(runner, number, tree)


def refused(folder: Path, target: Path) -> str:
    with pytest.raises(ValueError, match=f"^head {folder}") as caught:
        load_head(folder, target)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(folder)) + 500
    return str(caught.value)


ORIGINAL: list[tuple[Fields, str]] = [
    ({"hidden_size": 64}, "of a target with hidden_size 64, this one has 32"),
    ({"draft_vocab_size": 13}, "draft_vocab_size 13 must be at most 12"),
    ({IDS: [1, 3]}, "layer_ids [1, 3] are not all outputs of the target's 2 layers"),
    ({IDS: "1"}, "must be whole numbers"),
    ({"eagle_config": {"use_aux_hidden_state": False}}, "only true is"),
    ({"eagle_config": 3}, "eagle_config must be an object"),
    ({"architectures": ["MedusaModel"]}, "'MedusaModel' is no EAGLE-3 head"),
    ({"num_hidden_layers": 2}, "num_hidden_layers 2 is not supported"),
    ({"model_type": "gemma"}, "model_type 'gemma' of the layer is not one of"),
    ({"fc_norm": True, "norm_before_fc": True}, "exclude each other"),
]
SPECULATORS: list[tuple[Fields, str]] = [
    ({"speculators_model_type": "peagle"}, "'peagle' is not supported, only"),
    ({"transformer_layer_config": None}, "must be an object, got None"),
    ({"target_hidden_size": 16}, "hidden_size 16, this one has 32"),
]


@pytest.mark.parametrize(
    ("layout", "fields", "sentence"),
    [(layout, *case) for layout, cases in zip(LAYOUTS, (ORIGINAL, SPECULATORS)) for case in cases],
    ids=str,
)
def test_a_config_that_does_not_fit(tmp_path: Path, target: Path, layout: str, fields: Fields, sentence: str) -> None:
    config = eagle_config(target, layout)
    assert sentence in refused(write_files(tmp_path / "head", {**config, **fields}, eagle_weights(config)), target)


MID = "midlayer.self_attn.q_proj.weight"
SOME = torch.arange(10)


@pytest.mark.parametrize(("name", "tensor", "sentence"), [
    ("fc.weight", None, "it lacks tensor fc.weight of shape [32, 64]"),
    ("d2t", None, "it lacks tensor d2t of shape [10]"),
    (MID, torch.zeros(64, 32), f"tensor {MID} is [64, 32], not [64, 64]"),
    ("t2d", torch.ones(11).bool(), "tensor t2d is [11], not [12]"),
    ("t2d", torch.ones(12).bool(), "t2d and d2t name different tokens"),
    ("d2t", 0 * SOME + 3, "d2t leads to token 12, outside the target's"),
    ("d2t", 0 * SOME - 9, "d2t leads to token -9, outside the target's"),
    ("d2t", -SOME, "d2t leads to some token twice"),
    ("d2t", 0.0 * SOME, "d2t is of torch.float32, and must hold whole"),
    ("norm.weight", torch.ones(32, dtype=torch.int8), "is of torch.int8, and must hold floats"),
    ("midlayer.mlp.router.weight", torch.ones(2), "an unexpected tensor midlayer.mlp.router"),
    ("embed_tokens.weight", torch.ones(9, 32), "is [9, 32], not [12, 32]"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_tensors_that_do_not_fit(tmp_path: Path, target: Path, name: str, tensor: Tensor | None, sentence: str) -> None:
    config = eagle_config(target)
    weights = eagle_weights(config) | {"d2t": 0 * SOME, "t2d": torch.arange(12) < 10}
    if tensor is None:
        del weights[name]
    else:
        weights[name] = tensor
    assert sentence in refused(write_files(tmp_path / "head", config, weights), target)


def test_a_head_of_its_own_width_needs_its_own_embedding(tmp_path: Path, target: Path) -> None:
    fields: Fields = {"hidden_size": 48, "target_hidden_size": 32}
    without = write_eagle(tmp_path / "without", target, **fields)
    assert "lacks tensor embed_tokens.weight" in refused(without, target)
    config = eagle_config(target, "speculators", **fields)
    weights = eagle_weights(config, embedding=True) | {"verifier_norm.weight": torch.ones(32)}
    runner = load_head(write_files(tmp_path / "with", config, weights), target)
    assert runner.config.hidden == 48, "what is of the verifier is left out"


def test_files_that_are_damaged_or_of_another_kind(tmp_path: Path, target: Path) -> None:
    folder = write_eagle(tmp_path / "head", target)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-40])
    assert "cannot be read" in refused(folder, target)
    (folder / "model.safetensors").unlink()
    assert "it has no model.safetensors" in refused(folder, target)
    torch.save(eagle_weights(eagle_config(target)), folder / "pytorch_model.bin")
    said = refused(folder, target)
    assert "pytorch_model.bin is not loaded" in said
    command = said.partition('python -c "')[2].removesuffix('"`')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(command)  # noqa: S102 - what the sentence tells the user to run
    assert load_head(folder, target).vocab_size == 12
    (folder / "config.json").write_text("{")
    assert "is not valid JSON" in refused(folder, target)
    (folder / "config.json").unlink()
    assert "it has no config.json, so it is no published head" in refused(folder, target)

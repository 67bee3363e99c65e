from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoints import write_dense
from safetensors.torch import load_file
from tokenizers_tiny import write_bpe, write_spm

from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.moge import write_moge
from fastslow.models.recipe import ExpertLayout, Recipe
from fastslow.tools.convert.calibrate import NeuronSplit, calibrate
from fastslow.tools.convert.convert import convert
from fastslow.tools.convert.distill import Distiller, Schedule, saved_layout
from fastslow.tools.convert.options import ConvertOptions
from fastslow.tools.convert.student import (
    Divergence,
    GatedProduct,
    LowRankLinear,
    Student,
    recipe_of,
    run_mask,
)
from fastslow.tools.convert.teacher import Teacher, attend, rotary
from fastslow.tools.convert.texts import TextWriter
from fastslow.tools.training_state import read_state

QUICK = Schedule(row=24, rows=2, batch=4, written=200, rate=1e-2, warm_up=1)
GROUPS, EXPERTS, SHARED, WIDTH = 4, 4, 56, 8  # the defaults for 96 inner neurons


def dense_folder(folder: Path, **overrides: Any) -> Path:
    return write_dense(folder, vocab=write_bpe(folder), **overrides)


def layout_of(dense: Teacher) -> ExpertLayout:
    rows = torch.randint(
        0, dense.config.vocab_size, (4, 40), generator=torch.Generator().manual_seed(1)
    )
    return calibrate(dense, rows, NeuronSplit(GROUPS, EXPERTS, SHARED, WIDTH))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_folder(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def dense(folder: Path) -> Teacher:
    return Teacher(folder, torch.float32)


def trained(dense: Teacher, layout: ExpertLayout) -> Student:
    """A student whose deltas, norms and scales all differ from the dense model's."""
    student = Student(dense, layout, rank=3)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return student


def test_convert_writes_every_official_tensor(folder: Path, tmp_path: Path) -> None:
    out = convert(
        folder,
        tmp_path / "moge",
        ConvertOptions(groups=GROUPS, experts=EXPERTS, fast=1),
        schedule=QUICK,
        calibration_rows=4,
    )
    tensors = load_file(out / "model.safetensors")
    shapes = {
        "model.embed_tokens.weight": (320, 64),
        "model.norm.weight": (64,),
        "lm_head.weight": (320, 64),
    }
    for n in range(2):
        base = f"model.layers.{n}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{base}.{norm}.weight"] = (64,)
        for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            shapes[f"{base}.self_attn.{name}_proj.weight"] = (rows, 64)
            shapes[f"{base}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{base}.mlp.gate.weight"] = (GROUPS * EXPERTS, 64)
        shapes[f"{base}.mlp.router_scale"] = (1, GROUPS * EXPERTS)
        owners = {f"experts.{e}": WIDTH for e in range(GROUPS * EXPERTS)}
        for owner, width in (owners | {"shared_expert": SHARED}).items():
            shapes[f"{base}.mlp.{owner}.gate_proj.weight"] = (width, 64)
            shapes[f"{base}.mlp.{owner}.up_proj.weight"] = (width, 64)
            shapes[f"{base}.mlp.{owner}.down_proj.weight"] = (64, width)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["PanguProMoEForCausalLM"]
    assert (config["num_experts"], config["num_experts_per_tok"]) == (16, 4)
    assert config["shared_expert_intermediate_size"] == SHARED
    assert config["moe_intermediate_size"] == WIDTH
    modes = json.loads((out / "fastslow.json").read_text())["modes"]
    assert (modes["fast"]["groups"], modes["deep"]["groups"]) == (1, None)
    assert (out / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["moge"]  # no temporary folder stays


def test_convert_keeps_the_biases_of_pangu_embedded(tmp_path: Path) -> None:
    source = tmp_path / "embedded"
    vocab = write_spm(source)
    write_dense(source, "PanguEmbeddedForCausalLM", vocab=vocab, tie_word_embeddings=True)
    out = convert(
        source, tmp_path / "moge", ConvertOptions(groups=2), schedule=QUICK, calibration_rows=4
    )
    before, after = (load_file(f / "model.safetensors") for f in (source, out))
    for name in ("q_proj.bias", "o_proj.bias"):
        key = f"model.layers.1.self_attn.{name}"
        assert before[key].abs().sum() > 0
        assert torch.equal(before[key].bfloat16(), after[key])
    assert "lm_head.weight" not in after
    assert (out / "tokenizer.model").is_file()


def test_layout_uses_each_neuron_once_and_experts_fill_their_pool(dense: Teacher) -> None:
    layout = layout_of(dense)
    layout.check(96)
    assert layout.shared.shape == (2, SHARED)
    assert layout.pools.shape == (2, GROUPS, 10)
    assert layout.experts.shape == (2, GROUPS, EXPERTS, WIDTH)
    assert torch.equal(layout.member(0).sum(-1), torch.full((GROUPS, EXPERTS), float(WIDTH)))
    with pytest.raises(ValueError, match="each of the 97 neurons"):
        layout.check(97)
    broken = layout.experts.clone()
    broken[0, 0, 0, 0] = broken[0, 0, 0, 1]
    with pytest.raises(ValueError, match="ascending"):
        replace(layout, experts=broken).check(96)
    with pytest.raises(ValueError, match="0..9"):
        replace(layout, experts=layout.experts + 5).check(96)


def plain_ffn(x: torch.Tensor, tensors: dict[str, torch.Tensor], base: str) -> torch.Tensor:
    names = ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (tensors[f"{base}.{name}.weight"] for name in names)
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def plain_moge(
    x_TH: torch.Tensor, tensors: dict[str, torch.Tensor], base: str, groups: int
) -> torch.Tensor:
    """The MoGE layer as its authors state it, one token and one expert at a time."""
    rows = []
    for x in x_TH:
        p = torch.softmax(x @ tensors[f"{base}.gate.weight"].T, -1)
        weight = p * tensors[f"{base}.router_scale"][0]
        best = [g * EXPERTS + int(p[g * EXPERTS : (g + 1) * EXPERTS].argmax()) for g in range(4)]
        running = sorted(best, key=lambda e: -float(weight[e]))[:groups]
        y = plain_ffn(x, tensors, f"{base}.shared_expert")
        for e in running:
            y = y + weight[e] * plain_ffn(x, tensors, f"{base}.experts.{e}")
        rows.append(y)
    return torch.stack(rows)


def plain_hidden(dense: Teacher, out: Path, tokens: torch.Tensor, groups: int) -> torch.Tensor:
    tensors, config = load_file(out / "model.safetensors"), dense.config

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (config.hidden_size,), tensors[f"{name}.weight"], config.rms_norm_eps)

    cos, sin = rotary(64, config.head_dim, config.rope_theta)
    x = tensors["model.embed_tokens.weight"][tokens]
    for n in range(config.layers):
        base = f"model.layers.{n}"
        y = norm(x, f"{base}.input_layernorm")
        weights = [tensors[f"{base}.self_attn.{name}_proj.weight"] for name in "qkvo"]
        mixed = attend(config, [y @ w.T for w in weights[:3]], cos, sin, n, None)
        x = x + mixed @ weights[3].T
        y = norm(x, f"{base}.post_attention_layernorm")
        x = x + plain_moge(y[0], tensors, f"{base}.mlp", groups)
    return norm(x, "model.norm")


@pytest.mark.parametrize("groups", [4, 2, 1, 0])
def test_masked_student_equals_the_written_experts(
    folder: Path, dense: Teacher, tmp_path: Path, groups: int
) -> None:
    student = trained(dense, layout_of(dense))
    out = write_moge(folder, recipe_of(student), tmp_path / "moge", dtype=torch.float32)
    tokens = torch.arange(20).view(1, -1) * 3
    with torch.no_grad():
        ours = student(tokens, torch.full_like(tokens, groups)) @ dense.head.T
        plain = plain_hidden(dense, out, tokens, groups) @ dense.head.T
    assert float((ours - plain).abs().max()) < 1e-4


def test_writing_a_model_prints_nothing_to_standard_output(
    folder: Path, dense: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_moge(folder, Recipe.untrained(layout_of(dense)), tmp_path / "moge")
    assert capsys.readouterr().out == ""


def test_groups_may_differ_between_rows(dense: Teacher) -> None:
    student = trained(dense, layout_of(dense))
    tokens = torch.arange(24).view(2, -1)
    both = torch.tensor([[4] * 12, [1] * 12])
    with torch.no_grad():
        mixed = student(tokens, both)
        for row in range(2):
            alone = student(tokens[row : row + 1], both[row : row + 1])
            torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_lower_groups_win_ties() -> None:
    weight = torch.tensor([[[0.5, 0.9, 0.9, 0.5]]])
    kept = [run_mask(weight, torch.tensor([[g]])).flatten().tolist() for g in range(5)]
    assert kept == [
        [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]
    ]  # fmt: skip


def test_hand_written_gradients_equal_autograd() -> None:
    torch.manual_seed(0)
    x, w, a, b = (torch.randn(*s).double() for s in ((5, 7), (6, 7), (2, 7), (6, 2)))
    for tensor in (x, a, b):
        tensor.requires_grad_()

    def low_rank(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = LowRankLinear.apply(x, w, a, b)  # type: ignore[no-untyped-call]
        return out

    assert torch.autograd.gradcheck(low_rank, (x, a, b))
    gate, up, mask = (torch.randn(5, n).double().requires_grad_() for n in (8, 8, 3))
    assert torch.autograd.gradcheck(GatedProduct.apply, (gate, up, mask))
    ours, theirs, head = torch.randn(9, 6).requires_grad_(), torch.randn(9, 6), torch.randn(30, 6)
    loss = Divergence.apply(ours, theirs, head, 4)  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad(loss, ours)
    log_q = torch.log_softmax(ours @ head.T, -1)
    log_p = torch.log_softmax(theirs @ head.T, -1)
    plain = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, ours)[0])


def test_distillation_brings_the_student_closer_and_resumes(dense: Teacher, tmp_path: Path) -> None:
    layout = layout_of(dense)
    writer = TextWriter(dense, load_tokenizer(dense.folder))
    student, saved = Student(dense, layout, rank=4), tmp_path / "run.safetensors"
    plan = replace(QUICK, minutes=1.0, visits=40)
    trainer = Distiller(student, plan, None, writer, saved)
    trainer.pool.add(*writer.rows(4, plan.row))
    losses = [trainer.step() for _ in range(24)]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    trainer.save(saved)
    again = Distiller(Student(dense, saved_layout(saved), rank=4), plan, None, writer, saved)
    assert (again.steps, again.tokens) == (24, 24 * 48)
    for old, new in zip(student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(old, new)
    assert again.step() < sum(losses[:6]) / 6


def test_a_run_distils_until_its_minutes_are_over(
    folder: Path, dense: Teacher, tmp_path: Path
) -> None:
    options = ConvertOptions(groups=4, experts=4, minutes=0.02, checkpoint=tmp_path / "run")
    convert(folder, tmp_path / "moge", options, schedule=QUICK, calibration_rows=4)
    seconds, steps, _ = read_state(tmp_path / "run")["done"]
    assert seconds >= 1.2 and steps > 0
    again = replace(options, minutes=0.03, recipe=tmp_path / "recipe")
    convert(folder, tmp_path / "more", again, schedule=QUICK)
    assert read_state(tmp_path / "run")["done"][1] > steps
    Recipe.load(tmp_path / "recipe").check(dense.config)


def test_written_hidden_states_are_the_teachers(dense: Teacher) -> None:
    tokens, hidden = TextWriter(dense, load_tokenizer(dense.folder), seed=3).rows(3, 30)
    torch.testing.assert_close(hidden, dense.hidden(tokens), rtol=1e-3, atol=1e-3)


def test_recipe_survives_saving(dense: Teacher, tmp_path: Path) -> None:
    recipe = recipe_of(trained(dense, layout_of(dense)))
    recipe.save(tmp_path / "recipe.safetensors")
    loaded = Recipe.load(tmp_path / "recipe.safetensors")
    loaded.check(dense.config)
    assert torch.equal(loaded.layout.experts, recipe.layout.experts)
    assert loaded.deltas.keys() == recipe.deltas.keys()
    torch.testing.assert_close(loaded.norms, recipe.norms, rtol=0.01, atol=0.01)


def test_broken_recipes_are_refused(folder: Path, dense: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "recipe.safetensors"
    with pytest.raises(ValueError, match="must exist"):
        Recipe.load(path)
    recipe = recipe_of(trained(dense, layout_of(dense)))
    recipe.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="complete safetensors"):
        Recipe.load(path)
    deltas = dict(recipe.deltas)
    del deltas["1_up"]
    with pytest.raises(ValueError, match="1_up"):
        write_moge(folder, replace(recipe, deltas=deltas), tmp_path / "moge")
    norms = dict(recipe.norms)
    del norms["norm"]
    with pytest.raises(ValueError, match="norms"):
        write_moge(folder, replace(recipe, norms=norms), tmp_path / "moge")
    fewer = ExpertLayout(*(tensor[:1] for tensor in vars(recipe.layout).values()))
    with pytest.raises(ValueError, match="2 layers"):
        write_moge(folder, Recipe.untrained(fewer), tmp_path / "moge")
    assert not (tmp_path / "moge").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": 0}, "groups"),
        ({"groups": 200}, "groups"),
        ({"shared": 95}, "divide by groups=4"),
        ({"shared": 96}, "shared must be 1 to 95"),
        ({"width": 11}, "pool's 10 neurons"),
        ({"fast": 5}, "fast must be 0 to 4"),
        ({"minutes": -1.0}, "minutes"),
    ],
)
def test_impossible_conversions_are_refused(
    folder: Path, tmp_path: Path, given: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        options = ConvertOptions(**{"groups": 4, **given})  # type: ignore[arg-type]
        convert(folder, tmp_path / "moge", options, schedule=QUICK)


def test_calibration_needs_rows(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration_rows"):
        convert(folder, tmp_path / "moge", calibration_rows=0)


def test_other_models_are_refused(tmp_path: Path) -> None:
    for name, overrides in (
        ("mlp_bias", {"mlp_bias": True}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "yarn"}}),
    ):
        with pytest.raises(ValueError, match=name):
            convert(dense_folder(tmp_path / name, **overrides), tmp_path / "moge")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="new or empty"):
        convert(tmp_path / "mlp_bias", tmp_path / "full")


def test_the_default_split_of_a_known_size() -> None:
    assert NeuronSplit.of(1536, 8, 8, None, None) == NeuronSplit(8, 8, 896, 64)

"""The example that made smollm2-moge: a student that equals its written model, its training."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import write_dense
from reference_model import ReferenceModel
from refusals import refused
from smollm2_moge.distill import Distiller, Schedule, divergence
from smollm2_moge.student import Student, Teacher, recipe_of, run_mask
from tokenizers_tiny import write_bpe
from train_smollm2_moge import train

from fastslow import LLM
from fastslow.models.moge import write_moge
from fastslow.models.recipe import ExpertLayout, Recipe
from fastslow.tools.convert import NeuronSplit, calibrate
from fastslow.tools.job_options import ConvertOptions

QUICK = Schedule(row=24, rows=2, rate=1e-2, warm_up=1)


def layout_of(dense: Teacher) -> ExpertLayout:
    random = torch.Generator().manual_seed(1)
    rows = torch.randint(0, dense.config.vocab_size, (4, 40), generator=random)
    return calibrate(dense, rows.tolist(), NeuronSplit(4, 4, 56, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dense")
    return write_dense(made, vocab=write_bpe(made))


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


def test_masked_student_equals_the_written_experts(folder: Path, dense: Teacher, tmp_path: Path) -> None:
    """Whatever the groups of the rows beside it."""
    student = trained(dense, layout_of(dense))
    out = write_moge(folder, recipe_of(student), tmp_path / "moge", dtype=torch.float32)
    tokens, groups = torch.arange(80).view(4, -1) * 3, torch.tensor([4, 2, 1, 0])
    with torch.no_grad():
        ours = student(tokens, groups[:, None].expand_as(tokens)) @ dense.head.T
    for row, text, count in zip(ours, tokens.tolist(), groups.tolist()):
        assert float((row - ReferenceModel(out).logits(text, count)).abs().max()) < 1e-4


def test_lower_groups_win_ties() -> None:
    weight = torch.tensor([[[0.5, 0.9, 0.9, 0.5]]])
    kept = [run_mask(weight, torch.tensor([[g]])).flatten().tolist() for g in range(5)]
    assert kept == [
        [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]
    ]  # fmt: skip


def test_distillation_brings_the_student_closer(dense: Teacher) -> None:
    torch.manual_seed(0)
    text = torch.randint(0, dense.config.vocab_size, (QUICK.row + 1,))
    student = Student(dense, layout_of(dense), rank=4)
    trainer, tokens = Distiller(student, text, QUICK), text[None, : QUICK.row]

    @torch.no_grad()
    def loss() -> float:
        ours = student(tokens, torch.full_like(tokens, 4))
        return float(divergence(ours @ dense.head.T, dense.hidden(tokens) @ dense.head.T))

    before = loss()
    for _ in range(40):
        trainer.step()
    assert loss() < 0.6 * before
    same = torch.randn(3, 4, 7)
    assert float(divergence(same, same)) == pytest.approx(0.0, abs=1e-6)
    p, q = (torch.tensor([[[a, 1 - a]]]).log() for a in (0.25, 0.5))
    assert float(divergence(q, p)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


@pytest.mark.slow
def test_a_model_is_made(folder: Path, tmp_path: Path) -> None:
    options = ConvertOptions(groups=4, experts=4, tokens=300)
    with LLM(train(folder, tmp_path / "moge", options, replace(QUICK, minutes=0.02)), progress=False) as llm:
        assert llm.generate([[1, 2, 3]], mode="fast")[0].token_ids


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
    refused("must exist", Recipe.load, path)
    recipe = recipe_of(trained(dense, layout_of(dense)))
    recipe.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    refused("complete safetensors", Recipe.load, path)
    fewer = ExpertLayout(*(tensor[:1] for tensor in vars(recipe.layout).values()))
    for wrong, sentence in (
        (replace(recipe, deltas={n: d for n, d in recipe.deltas.items() if n != "1_up"}), "1_up"),
        (replace(recipe, norms={n: w for n, w in recipe.norms.items() if n != "norm"}), "norms"),
        (Recipe(fewer, {}, {}), "2 layers"),
    ):
        refused(sentence, write_moge, folder, wrong, tmp_path / "moge")
    assert not (tmp_path / "moge").exists()


def test_the_shipped_recipe() -> None:
    path = Path(__file__).parents[2] / "fastslow/models/data/smollm2_moge.safetensors"
    assert path.stat().st_size < 16 * 2**20
    layout = Recipe.load(path).layout
    assert layout.shared.shape == (30, 1088) and layout.experts.shape == (30, 8, 8, 48)

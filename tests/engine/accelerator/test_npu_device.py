"""`device="npu"`: what is missing is said, what runs is what the CPU says; weights in int8, and a router's; and which
names of torch_npu are called, and where."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import npu_kernels
import npu_sim
import pytest
import texts
import torch
from checkpoints import write_dense, write_moge
from npu_tools import CHIPS, simulated
from quant_tools import quantised
from safetensors.torch import load_file, save_file
from tokenizers_tiny import write_bpe
from torch.nn import functional as F

from fastslow import LLM, Prompt, SamplingParams, Speculation
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.ops import ModuleOps
from fastslow.engine.backends.device import choose_device, paged_ops_for
from fastslow.engine.backends.loader import DTYPES, load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import ExpertsModule, RoutedExperts
from fastslow.engine.model.ffn.router import ExpertChoice, GroupRouter
from fastslow.engine.model.mixers.grouped import GroupedModule
from fastslow.engine.model.ops import Linear, Ops
from fastslow.engine.model.parts import WeightReader

ROOT = Path(__file__).parents[3]
FILES = ("engine/backends/accelerator/npu.py", "engine/backends/accelerator/npu_310p.py")
CALLED = re.compile(r"torch_npu\.((?:npu\.)?\w+)")
DESCRIPTION = "quant_model_description.json"
TOKENS = texts.tokens_of(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_moge(tmp_path_factory.mktemp("moge"), vocab=320)
    write_bpe(folder, vocab_size=320)
    return folder


def test_without_torch_npu_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.raises(ValueError, match=r"^device 'npu' needs torch-npu .*'fastslow\[npu\]"):
        LLM(folder, device="npu", progress=False)


@pytest.mark.parametrize(("fields", "dtype", "chip", "pattern"), [
    ({}, "float32", CHIPS[0], "need dtype bfloat16 or float16, not float32"),
    ({"head_dim": 256}, "bfloat16", CHIPS[0], "need head_dim of at most 192, not 256"),
    ({"moe_intermediate_size": 40}, "auto", CHIPS[0], "need moe_intermediate_size to be a mul"),
    ({}, "auto", "Ascend950PR", "chip 'Ascend950PR' is not one of the known"),
])  # fmt: skip
def test_what_cannot_run_is_refused(
    tmp_path: Path, fields: dict[str, Any], dtype: str, chip: str, pattern: str
) -> None:
    folder = write_moge(tmp_path, **fields)
    with simulated(chip, exact=False), pytest.raises(ValueError, match=pattern):
        load_model(folder, dtype, "npu")


@pytest.mark.drafts(150, 10)
@pytest.mark.parametrize("chip", [pytest.param(CHIPS[0], marks=pytest.mark.slow), CHIPS[1]])
def test_answers_are_the_cpus(folder: Path, chip: str) -> None:
    """The public face: messages and text, drafters, modes, logprobs, a batch."""

    def answers(device: str) -> list[Any]:
        llm = LLM(folder, dtype="float32", device=device, progress=False, kv_memory="64MiB")
        sampling = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=2)
        prompts: list[Prompt] = ["one two three one two", [5, 6, 7, 5, 6], "x" * 40]
        out = []
        own = Speculation(drafter="self", groups=3)
        for mode, speculation in (("deep", "suffix"), ("fast", "off"), ("deep", own)):
            out += llm.generate(prompts, sampling, mode=mode, speculation=speculation, progress=False)
        seeded = SamplingParams(max_tokens=12, temperature=0.9, seed=7, n=2)
        out.append(llm.generate("one two", seeded, speculation="suffix"))
        if device == "npu":
            assert isinstance(llm.model, PagedDecoder) and llm.model.recorder.replays > 0
        llm.close()
        return out

    cpu = answers("cpu")
    with simulated(chip):
        npu = answers("npu")
    for ours, theirs in zip(npu, cpu, strict=True):
        for mine, wanted in zip(ours.choices, theirs.choices, strict=True):
            assert mine.token_ids == wanted.token_ids and mine.text == wanted.text
            for a, b in zip(mine.logprobs or (), wanted.logprobs or (), strict=True):
                assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize(("chip", "kind"), list(zip(CHIPS, ("moge", "dense"))))
def test_a_chips_own_dtype_errs_as_rounding_does(tmp_path: Path, chip: str, kind: str) -> None:
    """No further from float32 than plain torch in the same dtype, and where the best token differs the
    two best were closer than that."""
    write = write_moge if kind == "moge" else write_dense
    folder = write(tmp_path, num_attention_heads=4, head_dim=128)
    tokens = texts.tokens_of(150)
    exact = texts.logits(load_model(folder, "float32", "cpu"), tokens)
    dtype = "float16" if chip == CHIPS[1] else "bfloat16"
    config = ModelConfig.from_folder(folder)
    with Checkpoint.open(folder, config).reader(progress=False) as read:
        reader = WeightReader(Ops(), DTYPES[dtype], torch.device("cpu"), read)
        weights = Weights(config, reader)
    plain = texts.logits(Decoder(weights), tokens)
    with simulated(chip, exact=False):
        model = load_model(folder, device="npu")
        found = texts.logits(model, tokens, [130, *[1] * 12, 8])
    assert model.dtype == DTYPES[dtype]
    error, allowed = (found - exact).abs(), (plain - exact).abs()
    assert error.mean() < 2 * allowed.mean()
    best = exact.topk(2).values
    differs = found.argmax(-1) != exact.argmax(-1)
    gaps = (best[:, 0] - best[:, 1])[differs]
    # routing may part where two experts of a group are as near: such rows are off as a whole
    assert (gaps < 2 * error[differs].amax(-1)).all() and differs.float().mean() < 0.15


@pytest.fixture(scope="module")
def w8a8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w8a8")
    return quantised(write_moge(folder / "float", mlp_only_layers=[1]), folder / "int8")


def on_npu(folder: Path, dtype: str, quantization: str = "w8a8") -> PagedDecoder:
    model = load_model(folder, dtype, "npu", quantization=quantization)
    assert isinstance(model, PagedDecoder)
    return model


def test_int8_errs_as_its_rounding_of_rows_does(w8a8: Path) -> None:
    exact = texts.logits(load_model(w8a8, "float32", "cpu"), TOKENS)
    npu_kernels.calls.clear()
    with simulated(CHIPS[0], exact=False):
        model = on_npu(w8a8, "bfloat16")
        found = texts.logits(model, TOKENS, [50, *[1] * 10])
        plain = texts.logits(on_npu(w8a8, "bfloat16", "none"), TOKENS)
    layer = model.weights.layers[0]
    mixer, moge = layer.mixer, layer.ffn
    assert isinstance(mixer, GroupedModule) and isinstance(moge, ExpertsModule)
    assert mixer.qkv.weight.dtype == torch.int8
    assert moge.gate_up.weight.dtype == torch.int8
    assert npu_kernels.calls["npu_quant_matmul"] > 0 and model.recorder.replays == 9
    error, usual = (found - exact).abs().mean(), (plain - exact).abs().mean()
    assert error < 4 * usual and (found.argmax(-1) == exact.argmax(-1)).float().mean() > 0.8


def test_a_310p_multiplies_them_out(w8a8: Path) -> None:
    with simulated(CHIPS[1]):
        model = on_npu(w8a8, "float32")
        mixer = model.weights.layers[0].mixer
        assert isinstance(mixer, GroupedModule) and mixer.qkv.scale is None
        found = texts.logits(model, TOKENS)
    exact = texts.logits(load_model(w8a8, "float32", "cpu"), TOKENS)
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)


def test_experts_are_all_of_one_kind(w8a8: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(w8a8, tmp_path / "mixed")
    table = load_file(w8a8 / "model.safetensors")
    described = json.loads((w8a8 / DESCRIPTION).read_text("utf-8"))
    for name in [name for name in table if "layers.0.mlp.experts.3." in name]:
        described[name], table[name] = "FLOAT", table[name].float()
        if not name.endswith(".weight"):
            del described[name], table[name]
    save_file(table, folder / "model.safetensors")
    (folder / DESCRIPTION).write_text(json.dumps(described), "utf-8")
    with (
        simulated(CHIPS[0], exact=False),
        pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts: some experts are int8 and some are not"),
    ):
        on_npu(folder, "bfloat16")


@pytest.mark.parametrize("name", CHIPS)
def test_the_routers_weights_are_not_rounded(name: str) -> None:
    """Neither those that it multiplies by nor those that it gives: two experts that are each other's
    negative nearly cancel, and what is left is the difference of their weights."""
    with simulated(name, exact=False):
        ops: Any = paged_ops_for(choose_device("npu"))
        random = torch.Generator().manual_seed(0)
        x = torch.randn(3, 32, generator=random).to(ops.dtypes[0])
        router = torch.randn(4, 32, generator=random)
        assert torch.equal(ops.route(x, router), F.linear(x.float(), router))
        up = torch.randn(1, 32, 32, generator=random).to(x.dtype)
        down = torch.randn(1, 16, 32, generator=random).to(x.dtype)
        sides = (Linear(ops.pack_experts(x)) for x in (torch.cat((up, up)), torch.cat((down, -down))))
        kind = RoutedExperts(GroupRouter(2), 2, DenseMlp(16))
        both = ExpertsModule(kind, ModuleOps(ops), Linear(router), next(sides), next(sides))
        experts = torch.tensor([[0, 1]] * 3, dtype=torch.int32)
        weights = torch.tensor([[0.5001, 0.5]] * 3)
        none = torch.zeros_like(x)
        found = ops.experts(x, ExpertChoice(experts, weights), both, none)
        one = ops.experts(x, ExpertChoice(experts, torch.tensor([[1.0, 0.0]] * 3)), both, none)
        torch.testing.assert_close(found.float(), one.float() * 1e-4, rtol=0.02, atol=1e-6)


def test_all_names_exist_all_schemas_are_used_and_calls_are_in_these_files_only() -> None:
    text = "".join((ROOT / file).read_text("utf-8") for file in FILES)
    known = {schema.partition("(")[0].partition("::")[2] for schema in npu_kernels.SCHEMAS}
    device = {"npu", *(f"npu.{name}" for name in vars(npu_sim.torch_npu().npu))}
    assert set(CALLED.findall(text)) - device == known and "torch.ops." not in text
    assert json.loads(npu_kernels.FILE.read_text("utf-8"))["torch_npu"] == "2.13.0"
    files = [p for room in ("engine", "draft", "policies") for p in (ROOT / room).rglob("*.py")]
    words = ("torch_npu.", "ops.npu.", "from torch_npu")
    found = {p for p in files if any(word in p.read_text("utf-8") for word in words)}
    assert {path.relative_to(ROOT).as_posix() for path in found} - set(FILES) == {"engine/backends/device.py"}

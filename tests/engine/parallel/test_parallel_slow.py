"""Four ranks and mixes; torchrun; ranks without a parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import write_moge
from engine_tools import Setting
from exact_tools import SETTINGS, check, mixed
from head_tools import tiny_weights, write_head
from parallel_tools import SOON, bench_on, counted, gone, ranks, weight_bytes
from tokenizers_tiny import edit, write_bpe
from tune_tools import TEMPLATE

from fastslow import LLM, Mode, SamplingParams, Speculation
from fastslow.engine.parallel.model import ParallelModel
from fastslow.engine.types import Rows
from fastslow.tools.plan.shards import ShardPlan

pytestmark = pytest.mark.slow

WIDE: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
HOT: dict[str, Any] = {"seed": 7, "temperature": 0.8}
MIXES = ("ep=4", "tp=4", "dp=4", "ep=2,tp=2", "dp=2,tp=2", "dp=2,ep=2")


@pytest.mark.parametrize("layout", ["tp=2", "dp=2", *MIXES])
def test_every_setting_says_what_one_rank_says(tmp_path: Path, layout: str) -> None:
    with bench_on(tmp_path, layout, **WIDE) as bench:
        for name in ("prefix hit", "few pages, small chunks"):
            setting, warm = SETTINGS[name]
            if "few" in name:  # of every data-parallel rank
                assert isinstance(bench.model, ParallelModel)
                setting = Setting(26 * bench.model.storage.dp_ranks, prompt_rows=5)
            sums = check(bench, mixed(bench), setting, warm)
            assert 0 < sums["accepted"] < sums["drafted"], name
            assert sums["cached"] > 0 or not warm


@pytest.mark.parametrize("layout", MIXES)
def test_bytes_are_those_of_the_plan(tiny_moge: Path, layout: str) -> None:
    with ranks(tiny_moge, layout, "bfloat16") as model:
        plan = ShardPlan.of(model.config, model.parallel, torch.bfloat16)
        assert weight_bytes(model._worker.decoder.weights) == plan.shares[0].weights
        kv, sent = texts.storage(model, 32 * model.storage.dp_ranks), counted(model)
        rows = Rows.of([texts.chunk(texts.tokens_of(13), 0, 13, np.arange(13))])
        rows.outputs, rows.only_best = rows.outputs[:0], rows.only_best[:0]
        model.forward(rows, kv)
        padded = plan.padded([13] + [0] * (model.storage.dp_ranks - 1))
        sent["all reduce-scatter"] -= 64 * 2 * (model.parallel.ranks - 1) * padded  # the embedding
        for name, expected in plan.layer_traffic(padded).items():
            assert sent[name.replace("mlp", "all")] == expected * model.config.layers, name


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that talks, and answers until it is stopped."""
    made = tmp_path_factory.mktemp("spoken")
    write_bpe(made, TEMPLATE, 320)
    edit(made / "tokenizer_config.json", eos_token=None)
    write_moge(made, vocab=320, eos_token_id=None, max_position_embeddings=65536)
    config, weights = tiny_weights(made, (0, 2), 64)
    write_head(made / "draft_head.safetensors", config, weights)
    return made


@pytest.mark.parametrize("layout", ["ep=4", "dp=2,ep=2"])
def test_the_public_face_with_every_drafter(spoken: Path, layout: str) -> None:
    prompts = ["The quick brown fox", "1, 2, 3, 1, 2, 3, 1, 2", "Every expert answers"]
    sampling = [SamplingParams(max_tokens=n, **more) for n, more in ((24, HOT), (40, {}), (24, {}))]
    wishes: list[Any] = ["off", "suffix", "ngram", "auto", "head", "head|suffix", "ngram+self"]
    wishes += [
        Speculation(drafter="self", nodes=3),
        Speculation(drafter="self", nodes=3, layers=(0, 2)),
        Speculation(drafter="head", nodes=6, width=3),
        Speculation(drafter="model", model=spoken, nodes=3),
        Speculation(drafter="self", nodes=6, width=2, groups=1),
    ]
    modes: list[str | Mode] = ["fast", "deep", Mode(name="shared", groups=0)]

    def answers(llm: LLM) -> dict[str, list[Any]]:
        found = {w: llm.generate(prompts, sampling, mode=modes, speculation=w) for w in wishes}
        return {str(wish): [out.token_ids for out in outs] for wish, outs in found.items()}

    options: dict[str, Any] = {"dtype": "float32", "kv_memory": "16MiB", "max_model_len": 256}
    options |= {"prompt_rows": 7, "progress": False}
    with LLM(spoken, **options) as llm:
        alone = answers(llm)
    with LLM(spoken, parallel=layout, **options) as llm:
        shared = answers(llm)
    assert shared == alone
    assert len({tuple(x) for answers in alone.values() for x in answers}) == 3


def command(spoken: Path, *arguments: str) -> list[str]:
    options = ["--dtype", "float32", "--kv-memory", "16MiB", "--max-model-len", "2048"]
    wish = ["--model", str(spoken), *options, "--drafter", "off", *arguments]
    return ["-m", "fastslow.tools.cli.__main__", "generate", "Every expert answers", *wish]


def torchrun(count: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return [*launcher, "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint",
            "127.0.0.1:0", *arguments]  # fmt: skip


def children(pid: int) -> set[int]:
    """Of a process, and theirs."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()[1:]]
    found = {pid}
    while more := {child for child, parent in pairs if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_no_rank_outlives_the_one_that_asked(spoken: Path, launcher: str, how: str) -> None:
    asked = command(spoken, "--max-tokens", "1900")
    line = (
        [sys.executable, *asked, "--parallel", "ep=2"] if launcher == "own" else torchrun(2, *asked)
    )
    # where the tests themselves run in the background, Ctrl-C is ignored, and so it would be in the child
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.read(1), "it answers"
    others = children(process.pid)
    assert others
    process.send_signal(getattr(signal, how))
    process.communicate(timeout=60)
    assert gone(others)
    if launcher == "own" and how == "SIGINT":
        assert process.returncode == 130


def test_torchrun_says_what_one_process_says(spoken: Path) -> None:
    asked = command(spoken, "--max-tokens", "40", "--json")
    alone = subprocess.run([sys.executable, *asked], capture_output=True, text=True, check=True)
    shared = subprocess.run(torchrun(2, *asked), capture_output=True, text=True, check=True)
    assert json.loads(shared.stdout)["token_ids"] == json.loads(alone.stdout)["token_ids"]
    assert "2 ranks run plain torch" in shared.stderr


def test_a_rank_of_torchrun_is_killed(spoken: Path) -> None:
    line = torchrun(2, *command(spoken, "--max-tokens", "1900"))
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.read(1)
    found = sorted(children(process.pid))
    rank = next(p for p in found if "RANK=1" in environment(p))
    os.kill(rank, signal.SIGKILL)
    died = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - died < SOON
    assert process.returncode and "rank 1" in said
    assert gone(found)


def environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text("utf-8").split("\0")

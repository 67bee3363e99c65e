"""Every benchmark runs on a tiny model, and its file holds the figures that it promises."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import pytest
import random_gguf
import torch
from figures import middle
from head_tools import tiny_weights, write_head
from tune_tools import write_model, write_prompts

from fastslow import LLM, SamplingParams

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="benchmarks read /proc and /sys")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HEADER = {"command", "versions", "commit", "machine"}
CONDITIONS = {"turn", "bandwidth", "others", "contended"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a draft head."""
    folder = write_model(tmp_path_factory.mktemp("tiny") / "model", max_position_embeddings=4096)
    config, weights = tiny_weights(folder, (0, 2), 64)
    write_head(folder / "draft_head.safetensors", config, weights)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little memory is read to know the bandwidth; as many threads afterwards as before."""
    monkeypatch.setattr(figures, "PROBE_BYTES", 2**20)
    figures._block.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    figures._block.cache_clear()


class Place:
    """A place where a benchmark finds its files, and runs."""

    def __init__(self, model: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.out, self.patch = folder / "figures.json", patch
        prompts = write_prompts(folder / "prompts.jsonl", 4)
        self._names = {"model": model, "folder": folder, "out": self.out, "prompts": prompts}
        for name in ("old", "new"):  # two checkouts
            (folder / name).mkdir()
            (folder / name / "fastslow").symlink_to(BENCHMARKS.parent / "fastslow")
        turns = [{"turns": [f"What is {n} + 2?", "And twice that?"]} for n in range(3)]
        (folder / "turns.jsonl").write_text("\n".join(map(json.dumps, turns)), "utf-8")

    def run(self, name: str, asked: str) -> Any:
        """The program's exit code."""
        module = importlib.import_module(name)
        words = [word.format(**self._names) for word in asked.split()]
        self.patch.setattr(sys, "argv", [f"{name}.py", *words])
        return module.main()

    def file(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.out.read_text("utf-8"))
        return read


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(model, tmp_path, monkeypatch)


def test_every_benchmark_is_run_here() -> None:
    scripts = {p.stem for p in BENCHMARKS.glob("*.py") if "__main__" in p.read_text("utf-8")}
    assert scripts == {"checkouts", "peers", "random_gguf", "steps"}


def test_drafts_of_a_table_are_accepted_and_change_no_token(place: Place) -> None:
    asked = "--rows 2,4 --widths 1,2 --tokens 8 --repeat 1 --context 8 -o {out}"
    place.run("steps", f"--model {{model}} --dtype float32 {asked}")
    found = place.file()
    assert set(found) > HEADER
    assert all(run["same"] for cell in found["cells"] for run in cell["runs"])
    assert min(run["tokens"] for cell in found["cells"][1:] for run in cell["runs"]) > 1.2


RANDOM = [
    ("0.8B", "Q4_1", {"linear_num_key_heads": 2, "linear_num_value_heads": 8}),
    ("35B-A3B", "Q4_K", {"linear_num_key_heads": 2, "linear_num_value_heads": 8, "num_experts": 16}),
    ("GLM-4.7-Flash", "Q4_0", {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}),
    ("openPangu-2.0-Flash", "Q4_0", {"kv_lora_rank": 64, "n_routed_experts": 16, "num_key_value_heads": 4}),
    ("gemma4-26B-A4B", "Q4_0", {"num_experts": 16, "global_head_dim": 64, "num_global_key_value_heads": 2}),
    ("llama-135M", "Q8_0", {}),
]
SMALL = {"vocab_size": 512, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
SMALL |= {"linear_key_head_dim": 32, "linear_value_head_dim": 32, "intermediate_size": 256}
SMALL |= {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}


@pytest.mark.parametrize(("name", "kind", "own"), RANDOM, ids=[name for name, *_ in RANDOM])
def test_random_files_of_a_models_shape_run(name: str, kind: str, own: dict[str, int], place: Place) -> None:
    raw = random_gguf.MODELS[name]
    small = {field: value for field, value in SMALL.items() if field in raw} | own
    place.patch.setitem(random_gguf.MODELS, name, raw | small)
    place.run("random_gguf", f"{name} --type {kind} --layers 6 --out {{folder}}/m.gguf")
    with LLM(place.out.with_name("m.gguf")) as llm:
        drafting = bool(raw.get("mtp_num_hidden_layers") or raw.get("num_nextn_predict_layers"))
        assert len(llm.model.config.layers) == 6 and (llm.model.mtp is not None) == drafting
        ask = SamplingParams(max_tokens=8, ignore_eos=True)
        plain = llm.generate("the", ask, speculation="off").token_ids
        assert len(plain) == 8 and (not drafting or llm.generate("the", ask, speculation="mtp").token_ids == plain)


@pytest.mark.slow
def test_two_checkouts_are_compared_on_prompts_of_every_kind(place: Place) -> None:
    place.run(
        "checkouts",
        "{folder}/old {folder}/new --model abacus --quantization none --prompts {folder}/turns.jsonl"
        " --rounds 1 --repeat 1 --limit 2 -o {out}",
    )
    assert set(place.file()) == HEADER | {"model", "figures"}
    found = {row["name"]: row for row in place.file()["figures"]}
    cells = ["batch 1", "batch 8", "prefill 512", "auto turns"]
    assert list(found) == ["import, s", *(f"none {name}" for name in ["first token, s", *cells])]
    assert len(found["none auto turns"]["pairs"]) == 2
    assert all(row["old"] > 0 < row["new"] for row in found.values())


@pytest.mark.slow
def test_an_engine_is_measured_in_a_separate_process(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.gguf").touch()  # only other engines read it
    place.run(
        "peers",
        "--gguf {folder}/file.gguf --model {model} --engines fastslow:float32,openvino --threads 1"
        " --venvs {folder}/venvs --repeat 1 --tokens 4 --seconds 0 --lookup --out {out}",
    )
    found = place.file()
    assert set(found) == HEADER | {"threads", "engines"}
    ((name, engine),) = found["engines"].items()
    assert name == "fastslow:float32"
    assert not engine["failed"] and engine["memory"]["peak"] > 0 and engine["versions"]
    cells = {sample["cell"]: sample for sample in engine["samples"]}
    assert {"batch 1", "batch 8", "prefill 512", "lookup copy"} < set(cells)
    assert all(set(sample) >= {*CONDITIONS, "rate"} for sample in cells.values())
    assert all(sample.get("differs_at") is None for sample in cells.values())
    printed = capsys.readouterr().out
    assert "openvino:file is left out" in printed and "lookup copy" in printed


def test_contended_samples_are_left_out() -> None:
    samples = [{"rate": float(n), "contended": n > 3} for n in range(1, 6)]
    assert middle(samples) == "2.0 (n=3)", "contended ones are left out where enough are not"
    assert middle(samples[1:]) == "~3.5 (n=4)"

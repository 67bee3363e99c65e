"""Whatever drafts, a W8A8 model says what it says alone: keys and values in int8, heads, exports of V2."""

import json
from pathlib import Path
from typing import Any

import checkpoints
import pangu_v2_tools
import pytest
import texts
import torch
from engine_tools import Ask, Bench, Setting
from exact_tools import EVERY, PROMPTS, check, make_bench
from head_tools import tiny_weights, write_head
from kernel_tools import compiled
from quant_tools import export, quantised
from safetensors.torch import load_file

from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.backends.cpu.kv import Int8Tiles
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.rows import Rows, Segment

IDS = [[5, 6, 7, 5, 6], [9], [3, 4, 5, 6, 7, 8, 9, 10, 11]]
PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    def load(path: Path, **_: Any) -> Model:
        return load_model(quantised(path, path.with_name("w8a8"), kv=True), quantization="auto")

    made = make_bench(tmp_path_factory.mktemp("quantised"), "moge", load=load)
    assert made.model.storage is Int8Tiles
    return made


@compiled
@pytest.mark.parametrize("setting", [Setting(), Setting(prompt_rows=5), Setting(pages=24, max_running=3)], ids=str)
def test_every_drafter_says_what_plain_decoding_says(bench: Bench, setting: Setting) -> None:
    """All in one batch, of unlike modes and lengths. Accepted rows of forked trees move, and keep their bits."""
    asks = [
        Ask(PROMPTS[n % len(PROMPTS)], SamplingParams(max_tokens=20), name, groups=(None, 2, 0)[n % 3])
        for n, name in enumerate(EVERY)
    ]
    assert {ask.drafter for ask in asks} == set(EVERY) and check(bench, asks, setting)["accepted"] > 60


def predicted(model: Model) -> torch.Tensor:
    """What the layer for multi-token prediction says after random hidden states."""
    kv, tokens = kv_cache_for(model, 4), texts.tokens_of(9)
    kv.open(0, tokens, None, 0)
    kv.reserve(0, len(tokens))
    slots, places = kv.slots(0, 0, 9), range(9)
    rows = Rows.of([Segment(tokens, places, range(-1, 8), slots, slots[:0], outputs=places)])
    rows.inputs = torch.randn(9, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    assert model.mtp is not None
    return model.mtp.forward(rows, kv.storage).logits


@pytest.mark.parametrize("bits", ["W8A8_DYNAMIC", "W8A8"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_exports_of_v2_run_and_draft_with_their_own_layer(tmp_path: Path, bits: str, layers: int) -> None:
    plain = pangu_v2_tools.write_moe(tmp_path / "float", num_mtp_layers=layers, num_hidden_layers=2)
    folder = export(plain, tmp_path / "w8a8", bits)
    tokens = texts.tokens_of(30)
    found = texts.logits(load_model(folder, quantization="auto"), tokens)
    near = texts.logits(load_model(folder, "float32"), tokens)  # multiplied out
    exact = texts.logits(load_model(plain), tokens)
    assert (near - exact).abs().mean() < 0.1 * exact.std()
    assert 0 < (found - near).abs().mean() < 0.1 * exact.std()
    with LLM(folder, kv_memory="8MiB") as llm:
        assert not llm.has_head and (llm.model.mtp is not None) is (layers > 0)
        said = [o.token_ids for o in llm.generate(IDS, PARAMS, speculation="off")]
        if layers:
            outs = llm.generate(IDS, PARAMS, speculation=Speculation(drafter="mtp", nodes=3))
            assert [o.token_ids for o in outs] == said and sum(o.metrics.drafted for o in outs) > 0
            exact, near = predicted(load_model(plain)), predicted(llm.model)
            assert 0 < (near - exact).abs().mean() < 0.1 * exact.std()


def test_exports_of_v2_in_the_other_spelling(tmp_path: Path) -> None:
    """Its description names tensors as its files do."""
    folder = export(pangu_v2_tools.write_moe(tmp_path / "float", num_hidden_layers=2), tmp_path / "w8a8")
    wanted = texts.logits(load_model(folder, quantization="auto"), texts.tokens_of(9))

    def spelled(name: str) -> str:
        return name.replace("shared_experts", "shared_expert").replace("gate.e_score", "e_score")

    table = load_file(folder / "quant_model_weight_w8a8.safetensors")
    config = json.loads((folder / "config.json").read_text())
    other = checkpoints.write(tmp_path / "other", config, {spelled(name): tensor for name, tensor in table.items()})
    description = "quant_model_description.json"
    described = json.loads((folder / description).read_text())
    (other / description).write_text(json.dumps({spelled(name): kind for name, kind in described.items()}))
    assert torch.equal(texts.logits(load_model(other, quantization="auto"), texts.tokens_of(9)), wanted)


def test_a_head_drafts_for_a_quantised_target(tmp_path: Path) -> None:
    w8a8 = quantised(checkpoints.write_moge(tmp_path / "float"), tmp_path / "w8a8", embedding="int8")
    head = write_head(tmp_path / "head.safetensors", *tiny_weights(w8a8))
    with LLM(w8a8, kv_memory="8MiB") as llm:
        said = [o.token_ids for o in llm.generate(IDS, PARAMS, speculation="off")]
        outs = llm.generate(IDS, PARAMS, speculation=Speculation(drafter="head", head=str(head), nodes=3))
        assert [o.token_ids for o in outs] == said and sum(o.metrics.drafted for o in outs) > 0

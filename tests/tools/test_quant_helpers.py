"""What stands beside a W8A8 model: heads, the architecture with extras."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints
import pangu_v2_tools
import pytest
import texts
import torch
from head_tools import tiny_weights, write_head
from quant_tools import export, quantised
from safetensors.torch import load_file

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.head.mtp import has_mtp_layer, load_mtp
from fastslow.engine.backends.loader import load_model

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)
PROMPTS = [[5, 6, 7, 5, 6], [9], [3, 4, 5, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("bits", ["W8A8_DYNAMIC", "W8A8"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_exports_of_v2_run_and_draft_with_their_own_layer(
    tmp_path: Path, bits: str, layers: int
) -> None:
    plain = pangu_v2_tools.write_moe(tmp_path / "float", num_mtp_layers=layers, num_hidden_layers=2)
    folder = export(plain, tmp_path / "w8a8", bits)
    tokens = texts.tokens_of(30)
    found = texts.logits(load_model(folder, quantization="auto"), tokens)
    near = texts.logits(load_model(folder, "float32"), tokens)  # multiplied out
    exact = texts.logits(load_model(plain), tokens)
    assert (near - exact).abs().mean() < 0.1 * exact.std()
    assert 0 < (found - near).abs().mean() < 0.1 * exact.std()
    assert has_mtp_layer(folder) is (layers > 0)
    with LLM(folder, kv_memory="8MiB") as llm:
        assert llm.has_head is (layers > 0)
        said = [o.token_ids for o in llm.generate(PROMPTS, PARAMS, speculation="off")]
        if layers:
            asked = Speculation(drafter="head", nodes=3)
            outs = llm.generate(PROMPTS, PARAMS, speculation=asked)
            assert [o.token_ids for o in outs] == said
            assert sum(o.metrics.drafted for o in outs) > 0
            layer = load_mtp(folder, torch.float32)._layer.entry
            own = load_mtp(plain, torch.float32)._layer.entry
            torch.testing.assert_close(layer.to_dense(), own.to_dense(), atol=0.05, rtol=0.05)


def test_exports_of_v2_in_the_other_spelling(tmp_path: Path) -> None:
    """Its description names tensors as its files do."""
    plain = pangu_v2_tools.write_moe(tmp_path / "float", num_hidden_layers=2)
    folder = export(plain, tmp_path / "w8a8")
    wanted = texts.logits(load_model(folder, quantization="auto"), texts.tokens_of(9))

    def spelled(name: str) -> str:
        return name.replace("shared_experts", "shared_expert").replace("gate.e_score", "e_score")

    file = folder / "quant_model_weight_w8a8.safetensors"
    table = {spelled(name): tensor for name, tensor in load_file(file).items()}
    other = checkpoints.write(
        tmp_path / "other", json.loads((folder / "config.json").read_text()), table
    )
    described = json.loads((folder / "quant_model_description.json").read_text())
    (other / "quant_model_description.json").write_text(
        json.dumps({spelled(name): kind for name, kind in described.items()})
    )
    found = texts.logits(load_model(other, quantization="auto"), texts.tokens_of(9))
    assert torch.equal(found, wanted)


@pytest.fixture(scope="module")
def w8a8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = checkpoints.write_moge(tmp_path_factory.mktemp("float") / "moge")
    return quantised(plain, tmp_path_factory.mktemp("w8a8") / "moge", embedding="int8")


def test_a_head_drafts_for_a_quantised_target(w8a8: Path, tmp_path: Path) -> None:
    head = write_head(tmp_path / "head.safetensors", *tiny_weights(w8a8))
    with LLM(w8a8, kv_memory="8MiB") as llm:
        said = [o.token_ids for o in llm.generate(PROMPTS, PARAMS, speculation="off")]
        asked = Speculation(drafter="head", head=str(head), nodes=3)
        outs = llm.generate(PROMPTS, PARAMS, speculation=asked)
        assert [o.token_ids for o in outs] == said and sum(o.metrics.drafted for o in outs) > 0

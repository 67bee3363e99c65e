"""Steps from a checkpoint to W8A8: smoothing, layers, files, what is refused and reported."""

import json
from pathlib import Path

import checkpoints
import pangu_v2_tools
import pytest
import torch
from cli_tools import printed, refusal
from quant_tools import quantised, texts_of
from refusals import refused

from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.config import ModelConfig
from fastslow.tools.job_options import QuantizeOptions
from fastslow.tools.plan.published import KNOWN
from fastslow.tools.quantize.calibration import prompts_of
from fastslow.tools.quantize.comparison import compare
from fastslow.tools.quantize.quantize import int8_embedding, quantize
from fastslow.tools.quantize.quantize_layer import kv_scales, quantize_layer
from fastslow.tools.quantize.smooth import ChannelStats, Site, error, sites_of, smooth_site, vector
from fastslow.tools.quantize.watched import ROUTER, Tensors, WatchedLayer

MOGE = {**checkpoints.MOGE, "bias": True}
PANGU_72B = KNOWN["openpangu-pro-moe-72b"]
CONFIG = ModelConfig.from_json(MOGE)
LAYER = WatchedLayer(CONFIG, 0, LENGTHS := [30, 17])


def layer_of(n: int = 0, seed: int = 0) -> Tensors:
    prefix = f"model.layers.{n}."
    table = checkpoints.tensors(MOGE, seed)
    return {k.removeprefix(prefix): t for k, t in table.items() if k.startswith(prefix)}


def rows(count: int = 47, seed: int = 0) -> torch.Tensor:
    """With two channels much larger than the others, as real models have."""
    x = torch.randn(count, CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed))
    x[:, 5] *= 40
    x[:, 20] *= 15
    return x


def test_smoothing_changes_no_bit_of_a_float_model() -> None:
    tensors, x = layer_of(), rows()
    seen = ChannelStats()
    before, _ = LAYER(x, tensors, seen)
    old = dict(tensors)
    folded = 0
    for site in sites_of(CONFIG, 0, tensors):
        if not any(name in seen.largest for name in site.consumers):
            continue
        smooth = vector(site, tensors, seen.largest, 0.5)
        assert torch.equal(smooth.log2(), smooth.log2().round())
        site.fold(tensors, smooth)
        folded += 1
    assert folded > 4 and sum(not torch.equal(old[name], tensors[name]) for name in old) > 20
    assert torch.equal(LAYER(x, tensors)[0], before)


def test_smoothing_makes_int8_better_where_channels_differ() -> None:
    tensors, x = layer_of(), rows()
    seen = ChannelStats()
    LAYER(x, tensors, seen)
    site = next(iter(sites_of(CONFIG, 0, tensors)))
    none = torch.ones(CONFIG.hidden_size)
    before = error(site, tensors, seen, none)
    columns = smooth_site(site, tensors, seen)
    assert columns is not None and columns[5] > columns.median()
    seen.rows = {name: seen.rows[name] / columns for name in site.consumers}
    assert error(site, tensors, seen, none) < 0.5 * before


def test_the_router_and_every_expert_can_demand() -> None:
    """The vector of a shared input is the largest demand of any of its readers, channel by channel."""
    names = (ROUTER, "mlp.shared_expert.up_proj", "mlp.experts.3.up_proj", "mlp.experts.4.up_proj")
    tensors = {f"{name}.weight": torch.full((2, 4), 1.0) for name in names}
    tensors[f"{ROUTER}.weight"] /= 16  # small weights ask for much
    ones = torch.ones(4)
    largest = {ROUTER: ones.clone(), names[1]: ones.clone(), names[2]: ones.clone()}
    largest[names[2]][2] = 4.0**8
    site = Site(names, ("norm",))
    smooth = vector(site, tensors, largest, 0.5)
    assert smooth[2] == smooth[0] * 64 and smooth[0] == smooth[1] == smooth[3]
    largest[ROUTER][1] = 4.0**4  # 16 from the input, 4 from the small weights
    with_router = vector(site, tensors, largest, 0.5)
    assert with_router[1] == with_router[0] * 16
    largest[names[2]][1] = 0.0  # a dead channel asks for nothing
    assert vector(site, tensors, largest, 0.5)[1] == with_router[1]
    largest[names[3]] = torch.tensor([1.0, 1.0, 1.0, 4.0**6])  # until now it had seen no row
    assert vector(site, tensors, largest, 0.5)[3] == vector(site, tensors, largest, 0.5)[0] * 16


def test_a_layer_in_int8_is_near_the_float_one() -> None:
    tensors, x = layer_of(), rows()
    exact, _ = LAYER(x, tensors)
    made, float_NH, int8_NH = quantize_layer(CONFIG, 0, tensors, LENGTHS, x, x)
    assert torch.equal(float_NH, exact)
    assert 0 < made.drift == pytest.approx(float((int8_NH - exact).norm() / exact.norm())) and made.drift < 0.1
    assert f"{ROUTER}.weight" in made.tensors and ROUTER not in made.matrices
    keys, values = kv_scales(made.kv)
    assert len(keys) == len(values) == 2 * 16
    assert (keys * 127 >= made.kv[0] * 0.999).all()


def test_a_small_embedding_stays_in_float(tmp_path: Path) -> None:
    assert not int8_embedding(ModelConfig.from_json(PANGU_72B))
    assert int8_embedding(ModelConfig.from_json({**PANGU_72B, "num_hidden_layers": 4}))
    plain_ = checkpoints.write_moge(tmp_path / "float", torch_dtype="bfloat16")
    sizes = {}
    for embedding in ("int8", "float"):
        options = QuantizeOptions(tokens=64, embedding=embedding)
        sizes[embedding] = quantize(plain_, tmp_path / f"w8a8-{embedding}", texts_of(96), options).nbytes
    assert sizes["float"] - sizes["int8"] == 2 * 96 * (64 - 2), "embedding and head, and scales"


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    plain_ = checkpoints.write_moge(tmp_path / "float", num_hidden_layers=1)
    folder = quantised(plain_, tmp_path / "w8a8", tokens=24)
    other = tmp_path / "other"  # refused before its weights are read
    other.mkdir()
    (other / "config.json").write_text(json.dumps(pangu_v2_tools.MOE))
    for source, out, said in (
        (folder, "again", "is quantised already"),
        (plain_, "w8a8", "must be new or empty"),
        (other, "new", "PanguProMoEV2ForCausalLM cannot be quantised"),
    ):
        refused(said, quantize, source, tmp_path / out, texts_of(96))
    refused("calibration needs at least one text", quantize, plain_, tmp_path / "none", iter(()))
    assert not (tmp_path / "none").exists()
    assert "cannot be quantised" in refusal("quantize", other, tmp_path / "new")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.3.up_proj.weight", "model.embed_tokens.weight"])
def test_numbers_that_are_not_finite_are_found_in_the_source(tmp_path: Path, name: str) -> None:
    config = {**checkpoints.MOGE, "num_hidden_layers": 1}
    table = checkpoints.tensors(config)
    table[name][2, 3] = float("nan")
    source = checkpoints.write(tmp_path / "float", config, table)
    refused(f"tensor {name} has numbers that are not finite", quantised, source, tmp_path / "w8a8")
    assert not (tmp_path / "w8a8").exists()


def test_models_are_compared_place_by_place(tmp_path: Path) -> None:
    model = load_model(checkpoints.write_moge(tmp_path / "a"), "float32")
    other = load_model(checkpoints.write_moge(tmp_path / "b", seed=1), "float32")
    texts = list(texts_of(96, 3, 20))
    same = compare(model, model, texts)
    assert (same.kl, same.agreement, same.tokens) == (0, 1, 57) and same.perplexity == same.source_perplexity
    apart = compare(model, other, texts)
    assert apart.kl > 0.1 and apart.agreement < 0.5
    swapped = compare(other, model, texts)
    assert apart.perplexity == swapped.source_perplexity
    refused("evaluation needs a text of at least 2 tokens", compare, model, model, [[1]])


def test_the_command_quantises_and_reports_also_on_a_checkpoints_own_prompts(tmp_path: Path) -> None:
    plain_ = checkpoints.write_moge(tmp_path / "float", num_hidden_layers=2, eos_token_id=None)
    (plain_ / "old.head").write_bytes(b"")  # of the float weights
    out = tmp_path / "w8a8"
    said = printed("quantize", plain_, out, *("--tokens", 64, "--answer", 6, "--check", 3, "--kv"))
    assert "perplexity" in said and "drift of a layer" in said and f"--model {out}" in said
    record = json.loads((out / "quantization_report.json").read_text())
    assert record["bytes"] < record["source_bytes"] and len(record["drift"]) == 2
    assert record["compared"]["agreement"] > 0.5 and record["compared"]["kl"] > 0
    assert not (out / "old.head").exists()
    assert len(prompts_of(None, tmp_path)) > 10
    own, given = tmp_path / "calibration.jsonl", tmp_path / "mine.jsonl"
    own.write_text('{"prompt": "What is 1 + 1?"}\n', "utf-8")
    given.write_text('{"prompt": "mine"}\n', "utf-8")
    assert prompts_of(None, tmp_path) == [[{"role": "user", "content": "What is 1 + 1?"}]]
    assert prompts_of(given, tmp_path) == [[{"role": "user", "content": "mine"}]]

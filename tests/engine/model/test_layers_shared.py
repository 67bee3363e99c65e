"""A family made here: layers that read the keys of an earlier layer, mixed with such as have their own.

Windows, partial rotation, soft caps, value heads narrower than keys, routed experts in some layers: what the owner has
counts for what is kept, and all else for the layer that reads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from checkpoints import DENSE, tensors
from layer_fuzz import FEW_AND_MANY, LayerFuzz, load, near
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.families.reading import attending, decoder, feeding, norm_of
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import ConfigJson, Family, register
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer

CONFIG: dict[str, Any] = DENSE | {"architectures": ["SharedKeysForCausalLM"], "num_hidden_layers": 6, "vocab_size": 32}
CONFIG |= {"owners": [0, 1, 0, 1, 4, 1], "windows": [0, 9, 0, 9, 0, 5], "values": 12, "cap": 3.0}
CONFIG |= {"experts": 8, "top_k": 3, "expert_width": 32, "routed_layers": [2, 4]}
TOKENS = texts.tokens_of(140, vocab=32)  # longer than a block of attention


def read(raw: ConfigJson) -> DecoderShape:
    owners, windows, routed = raw["owners"], raw["windows"], raw["routed_layers"]
    mixer = replace(attending(raw), query_norm=norm_of(raw), value_dim=raw["values"], score_cap=raw["cap"])
    router = Router("chosen", raw["top_k"])
    experts = RoutedExperts(router, raw["experts"], DenseMlp(raw["expert_width"]), DenseMlp(raw["expert_width"]))

    def one(n: int, layer: Layer) -> Layer:
        shares = None if owners[n] == n else owners[n]
        values = raw["values"] if n else raw.get("first_values", raw["values"])
        own = replace(mixer, window=windows[n], shares=shares, value_dim=values)
        return Layer(own, experts if n in routed else layer.ffn, layer.norms)

    return decoder(raw, Layer(mixer, feeding(raw))).each(one)


register(Family(("SharedKeysForCausalLM",), read))


def reference(table: dict[str, Tensor], tokens: list[int], running: int | None = None) -> Tensor:
    """[T, V] log-probabilities, in float64, of a whole text at once. running: experts of a token; None: all chosen."""
    c, w = CONFIG, {name: tensor.double() for name, tensor in table.items()}
    heads, dim, count = c["num_attention_heads"], c["head_dim"], len(tokens)
    places = torch.arange(count)
    angles = places[:, None].double() * c["rope_theta"] ** -(torch.arange(0, dim, 2).double() / dim)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def norm(name: str, x: Tensor) -> Tensor:
        scaled: Tensor = x / (x.square().mean(-1, keepdim=True) + c["rms_norm_eps"]).sqrt()
        return scaled * w[f"{name}.weight"]

    def turned(x: Tensor) -> Tensor:
        """Pairs lie half a head apart."""
        pairs = torch.complex(*x.chunk(2, -1)) * turn
        return torch.cat((pairs.real, pairs.imag), -1)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"])

    def mlp(name: str, x: Tensor) -> Tensor:
        return linear(f"{name}.down_proj", F.silu(linear(f"{name}.gate_proj", x)) * linear(f"{name}.up_proj", x))

    def mixture(name: str, x: Tensor) -> Tensor:
        out = mlp(f"{name}.shared_expert", x)
        best = linear(f"{name}.gate", x).sort(dim=-1, descending=True)
        size = c["top_k"] if running is None else running
        for t in range(count):
            weights = best.values[t, :size].softmax(-1)
            for weight, e in zip(weights, best.indices[t].tolist()):
                out[t] += weight * mlp(f"{name}.experts.{e}", x[t])
        return out

    x = w["model.embed_tokens.weight"][tokens]
    for n, (owner, window) in enumerate(zip(c["owners"], c["windows"])):
        p, own = f"model.layers.{n}", f"model.layers.{n}.self_attn"
        fresh = norm(f"{p}.input_layernorm", x)
        q = turned(norm(f"{own}.q_norm", linear(f"{own}.q_proj", fresh).view(count, heads, dim)))
        if owner == n:
            k = turned(linear(f"{own}.k_proj", fresh).view(count, -1, dim))
            kept[n] = k, linear(f"{own}.v_proj", fresh).view(count, -1, c["values"])
        k, v = (side.repeat_interleave(2, 1) for side in kept[owner])
        back = places[:, None] - places
        hidden = (back < 0) | (back >= window if window else False)
        scores = c["cap"] * (torch.einsum("qhd,khd->hqk", q, k) / dim**0.5 / c["cap"]).tanh()
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        x = x + linear(f"{own}.o_proj", torch.einsum("hqk,khd->qhd", weights, v).reshape(count, -1))
        fresh = norm(f"{p}.post_attention_layernorm", x)
        x = x + (mixture if n in c["routed_layers"] else mlp)(f"{p}.mlp", fresh)
    return F.linear(norm("model.norm", x), w["lm_head.weight"]).log_softmax(-1)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("running", [None, 1, 0])
def test_logprobs_are_the_references(dtype: str, atol: float, running: int | None, tmp_path: Path) -> None:
    table = tensors(CONFIG)
    model = load(tmp_path, CONFIG, table, dtype)
    found = texts.logits(model, TOKENS, [129, *[1] * 5, 6], running).double().log_softmax(-1)
    torch.testing.assert_close(found, reference(table, TOKENS, running), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"owners": [0, 1, 3, 1, 4, 1]}, "layer 2 shares the keys of layer 3, which is no earlier one with keys"),
        ({"owners": [0, 1, 0, 2, 4, 1]}, "layer 3 shares the keys of layer 2, which is no earlier one with keys"),
        ({"first_values": 8}, "layer 2 shares the keys of layer 0, whose heads are of other sizes"),
    ],
)
def test_owners_are_earlier_layers_with_keys_of_the_same_size(fields: dict[str, Any], limit: str) -> None:
    with pytest.raises(ValueError, match=f"^{limit}$"):
        ModelConfig.from_json(CONFIG | fields)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> LayerFuzz:
    folder, table = tmp_path_factory.mktemp("shared"), tensors(CONFIG)
    return LayerFuzz(load(folder / "own", CONFIG, table), load(folder / "kin", CONFIG, near(table)))


@FEW_AND_MANY
def test_answers_are_those_of_plain_decoding(fuzz: LayerFuzz, count: int) -> None:
    fuzz.check(count)

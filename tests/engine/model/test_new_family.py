"""A family that is made here and nowhere else: a layer of parts that there are is all that it takes.

GeGLU, norm weights less one in the file, scaled embeddings, norms after sublayers, as Gemma has them; on plain torch,
the CPU kernels and an accelerator's decoder, against the model once more as plainly as can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import texts
import torch
from checkpoints import DENSE, tensors, write
from engine_tools import Ask, Bench, RandomDraft, answer
from family_tools import load
from layer_fuzz import LayerFuzz
from reference_model import ReferenceModel
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.cuda import CudaOps
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.families.reading import attending, decoder, feeding, norm_of
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family, register
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer
from fastslow.engine.params import SamplingParams

CONFIG: dict[str, Any] = {
    **DENSE,
    "architectures": ["SandwichForCausalLM"],
    "vocab_size": 48,
    "num_hidden_layers": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
PARTIAL = {"partial": 8, "values": 12}
VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "caps": CAPS, "partial": PARTIAL}


def read(raw: ConfigJson) -> DecoderShape:
    """Read what differs from Llama."""
    partial, values = raw.get("partial"), raw.get("values")
    score_cap, logit_cap = (raw.number(name) if name in raw else 0.0 for name in CAPS)
    norm, mixer = RmsNorm(norm_of(raw).eps, offset=1.0), attending(raw)
    assert mixer.rope is not None
    layout = "interleaved-first" if partial else "halves-first"
    mixer = replace(
        mixer,
        rope=replace(mixer.rope, width=partial or 0, layout=layout),
        query_norm=norm,
        value_dim=values or 0,
        qkv_bias=bool(partial),
        score_cap=score_cap,
    )
    shape = decoder(raw, Layer(mixer, feeding(raw), LayerNorms(norm, after=True)), norm=norm)
    scale = math.sqrt(shape.hidden_size)
    return replace(shape, embedding_scale=scale, logit_cap=logit_cap)


register(Family(("SandwichForCausalLM",), read))


def table(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights, those of norms less one."""
    return {name: x - float("norm.weight" in name) for name, x in tensors(config).items()}


class Reference(ReferenceModel):
    """The same differences from Llama, in the reference."""

    norm_offset = 1.0
    embedding_scale = math.sqrt(CONFIG["hidden_size"])
    activation = staticmethod(partial(F.gelu, approximate="tanh"))


def on_accelerator(folder: Path, dtype: str) -> Model:
    config = ModelConfig.from_folder(folder)
    cpu = torch.device("cpu")
    with floats(folder, config) as weights:
        kind = getattr(torch, dtype)
        return PagedDecoder(Stacked(config, CudaOps(cpu), kind, cpu, weights))


Load = Callable[[Path, str], Model]
BACKENDS: dict[str, Load] = {
    "torch": lambda folder, dtype: load(folder, False, dtype),
    "kernels": lambda folder, dtype: load(folder, True, dtype),
    "accelerator": on_accelerator,
}
TOKENS = texts.tokens_of(150, vocab=48)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_logprobs_are_the_references(backend: str, variant: str, tmp_path: Path) -> None:
    config = {**CONFIG, **VARIANTS[variant]}
    folder = write(tmp_path, config, table(config))
    if (backend, variant) == ("accelerator", "caps"):
        with pytest.raises(ValueError, match="soft caps of attention scores do not run"):
            BACKENDS[backend](folder, "float32")
        return
    wanted = Reference(folder).logits(TOKENS).log_softmax(-1)
    found = texts.logits(BACKENDS[backend](folder, "float32"), TOKENS, [140, *[1] * 10])
    torch.testing.assert_close(found.double().log_softmax(-1), wanted, rtol=0, atol=1e-4)
    rounded = texts.logits(BACKENDS[backend](folder, "bfloat16"), TOKENS).double()
    assert (rounded.log_softmax(-1) - wanted).abs().mean() < 0.1 * wanted.std()


@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_change_no_token(backend: str, tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG, table(CONFIG))
    model, plain = BACKENDS[backend](folder, "float32"), load(folder, False)
    LayerFuzz(model, model, plain if backend == "accelerator" else None).check(20)


@pytest.mark.drafts(200, 4, nodes=None)
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_a_soft_cap_makes_equal_are_told_apart(backend: str, tmp_path: Path) -> None:
    """The answer is the same with logprobs and without, and where other rules than the largest logit end in it."""
    config = CONFIG | {"final_logit_softcapping": 1e-3, "tie_word_embeddings": False}
    bench = Bench(
        BACKENDS[backend](write(tmp_path, config, table(config)), "float32"), {"random": lambda kv: RandomDraft()}
    )
    late = {"min_tokens": 9}
    pairs: list[list[dict[str, Any]]] = [[{}, {"logprobs": 2}], [late, late | {"logprobs": 0}]]
    for ways in pairs:
        wishes = [SamplingParams(max_tokens=24, ignore_eos=True, **way) for way in ways]
        asks = [Ask((5, 6, 7), wish, name) for wish in wishes for name in ("off", "random")]
        first, *others = map(answer, [*bench.run(asks), *map(bench.alone, asks)])
        assert others == [first] * 7 and len(set(first)) > 1


def test_an_activation_that_nothing_runs_is_refused() -> None:
    shape = ModelConfig.from_json(CONFIG)
    with pytest.raises(ValueError, match="activation 'relu' is not one of silu, gelu_tanh"):
        odd = DenseMlp(96, "relu")  # type: ignore[arg-type]
        shape.each(lambda n, layer: replace(layer, ffn=odd)).check()

"""Tiny models with a layer for multi-token prediction, by how its tensors are named, and that layer as plainly as
can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hybrid_model
import pangu_v2_tools
import torch
from checkpoints import DENSE, tensors, write
from family_tools import load
from reference_model import ReferenceModel
from torch import Tensor

from fastslow.draft.head.growing import Growth
from fastslow.draft.mtp.draft import MtpDraft
from fastslow.engine.backends.accelerator.cuda import CudaOps
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.checkpoint.checkpoint import floats
from fastslow.engine.families.reading import decoder, norm_of
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family, register
from fastslow.engine.model.shape import DecoderShape, MtpLayer
from fastslow.engine.types import RequestView, Tree

VOCAB = 24
SMALL: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 2}


def _numbered(raw: ConfigJson) -> DecoderShape:
    """As DeepSeek."""
    shape = decoder(raw)
    mtp = MtpLayer.numbered(shape.layers[0], len(shape.layers), shape.norm)
    return replace(shape, mtp=mtp, drafts_inside=True)


def _apart(raw: ConfigJson) -> DecoderShape:
    """As Qwen3-Next, whose norms are less one in the file."""
    norm = replace(norm_of(raw), offset=1.0)
    shape = decoder(raw, norm=norm)
    return replace(shape, mtp=MtpLayer.apart(shape.layers[0], norm))


def _turned(raw: ConfigJson) -> DecoderShape:
    """The hidden state first, and as it is before the last norm."""
    shape = decoder(raw)
    mtp = MtpLayer.numbered(shape.layers[0], len(shape.layers), shape.norm, after_norm=False)
    return replace(shape, mtp=replace(mtp, embedding_first=False), drafts_inside=True)


def _three(raw: ConfigJson) -> DecoderShape:
    """Three layers, of which each drafts one token."""
    shape = decoder(raw)
    mtp = MtpLayer.numbered(shape.layers[0], len(shape.layers), shape.norm, count=3)
    return replace(shape, mtp=mtp, drafts_inside=True)


for name, read in (("Three", _three), ("Numbered", _numbered), ("Apart", _apart), ("Turned", _turned)):
    register(Family((f"Mtp{name}ForCausalLM",), read))

CONFIGS: dict[str, dict[str, Any]] = {
    "numbered": {**DENSE, **SMALL, "architectures": ["MtpNumberedForCausalLM"]},
    "apart": {**DENSE, **SMALL, "architectures": ["MtpApartForCausalLM"]},
    "turned": {**DENSE, **SMALL, "architectures": ["MtpTurnedForCausalLM"]},
    "three": {**DENSE, **SMALL, "architectures": ["MtpThreeForCausalLM"]},
    "mimo": {**DENSE, **SMALL, "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1},
    "pangu v2": {**pangu_v2_tools.MOE, **SMALL},
    "qwen hybrid": {**hybrid_model.CONFIG, "vocab_size": VOCAB},
}


def table(kind: str) -> dict[str, Tensor]:
    """Random weights by their names in files."""
    if kind == "pangu v2":
        return pangu_v2_tools.tensors(CONFIGS[kind])
    if kind == "qwen hybrid":
        return hybrid_model.table(CONFIGS[kind])
    found = tensors(CONFIGS[kind])
    for name in found:
        if name.startswith("mtp.pre_fc_norm") or name == "mtp.norm.weight":
            found[name] = 1 + 0.2 * torch.randn(found[name].shape, generator=torch.Generator().manual_seed(len(name)))
        if kind == "apart" and "norm" in name:
            found[name] -= 1
    return found


def write_mtp(folder: Path, kind: str) -> Path:
    """A checkpoint of one of CONFIGS."""
    return write(folder, CONFIGS[kind], table(kind))


def repeat_itself(folder: Path, kind: str = "numbered") -> Path:
    """A checkpoint whose next token depends on the last alone, and whose MTP layer finds it, too."""
    found = table(kind)
    for name, x in found.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            x.zero_()
        elif "norm" in name:
            x.fill_(1.0)
        elif name.endswith("eh_proj.weight"):
            x.copy_(torch.cat((torch.eye(len(x)), torch.zeros(len(x), len(x))), -1))
    return write(folder, CONFIGS[kind], found)


def on_accelerator(folder: Path) -> Model:
    """The device's decoder, on the CPU."""
    config, cpu = ModelConfig.from_folder(folder), torch.device("cpu")
    with floats(folder, config) as weights:
        return PagedDecoder(Stacked(config, CudaOps(cpu), torch.float32, cpu, weights))


BACKENDS: dict[str, Callable[[Path], Model]] = {
    "torch": lambda folder: load(folder, False),
    "kernels": lambda folder: load(folder, True),
    "accelerator": on_accelerator,
}


class SpiedMtp(MtpDraft):
    """Notes each text that it drafts for, and the draft."""

    def __init__(self, model: Model, kv: KVCache, width: int = 1) -> None:
        super().__init__(model, kv, Growth(width))
        self.made: list[tuple[list[int], Tree]] = []

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = super().propose(batch, nodes)
        self.made += [(list(r.tokens), tree) for r, tree in zip(batch, trees) if tree.tokens]
        return trees


class ReferenceMtp:
    """The layers after the plain model: each draft from the whole text again."""

    def __init__(self, folder: Path) -> None:
        config = ModelConfig.from_folder(folder)
        hybrid = config.architecture in hybrid_model.CONFIG["architectures"]
        self.plain = plain = (hybrid_model.HybridReference if hybrid else ReferenceModel)(folder)
        assert config.mtp is not None
        self._heads, self._layer = config.mtp.heads, len(config.layers)
        plain.norm_offset = getattr(config.norm, "offset", 0.0)
        for n, head in enumerate(self._heads, self._layer):
            own = {name: x for name, x in plain.tensors.items() if name.startswith(f"{head.prefix}.")}
            plain.tensors |= {name.replace(head.prefix, f"model.layers.{n}"): x for name, x in own.items()}

    def chain(self, tokens: list[int], count: int, unknown: Sequence[int] = ()) -> list[int]:
        """The likeliest tokens after a text whose last token the target has not read. unknown: rows whose hidden state
        is not known, besides the first; a later head lacks those behind them, too."""
        text, most = list(tokens), len(self._heads) - 1
        self.plain.unseen = ()
        before = self.plain.hidden(text[:-1])
        if self._heads[0].after_norm:
            before = self.plain.norm("model.norm", before)
        before = torch.cat((torch.zeros_like(before[:1]), before))
        for n in range(count):
            self.plain.unseen = [0, *unknown]
            states = before
            for k in range(min(n, most) + 1):  # each from what the one before made of the token before
                self.plain.unseen = [*range(k + 1), *{row + j for row in unknown for j in range(k + 1)}]
                while True:
                    out = self._run(k, text[: len(states)], states)
                    if k < most or len(states) == len(text):
                        break
                    states = torch.cat((states, out[-1:]))
                states = torch.cat((torch.zeros_like(out[:1]), out))
            text.append(int(self.plain.linear("lm_head", out[-1:]).argmax()))
        return text[len(tokens) :]

    def _run(self, k: int, text: list[int], before: Tensor) -> Tensor:
        head, plain = self._heads[k], self.plain
        embedded = plain.tensors["model.embed_tokens.weight"][text]
        pair = (plain.norm(head.embedding_norm, embedded), plain.norm(head.hidden_norm, before))
        x = plain.linear(head.entry, torch.cat(pair if head.embedding_first else pair[::-1], -1))
        return plain.norm(head.norm, plain.layer(self._layer + k, x))

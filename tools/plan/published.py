"""Models that can be planned for without their folder, and what is published of one of them.

The figures of openPangu Pro MoE 72B: arXiv 2505.21411, section 5.3: W8A8, sequences of 2048 tokens, four cards. Two rows fix the
two efficiencies that no data sheet has; the others are predictions. `docs/planner.md` discusses them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from fastslow.engine.host.files import read_object
from fastslow.engine.host.gguf_file import GgufTensor, is_gguf, read_gguf
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import nearest
from fastslow.models.locate import BUILTIN, builtin_path
from fastslow.tools.plan.device import DEVICES
from fastslow.tools.plan.search import DraftCost
from fastslow.tools.plan.step import STATED, Efficiency, ForwardWork, Precision, Setting

KNOWN: dict[str, dict[str, Any]] = json.loads(  # the fields of public config.json files
    Path(__file__).with_name("models.json").read_text("utf-8")
)


def config_of(model: str) -> ModelConfig:
    """A known name, a checkpoint folder, a GGUF file, a config.json, or a built-in model.

    Raises:
        ValueError: none of them, or a config.json that does not fit.
    """
    if model in KNOWN:
        return ModelConfig.from_json(KNOWN[model])
    path = Path(model)
    if path.is_dir() or is_gguf(path):
        return ModelConfig.from_folder(path)
    if path.is_file():
        try:
            return ModelConfig.from_json(read_object(path))
        except ValueError as error:
            raise ValueError(f"{path} is no config.json of a known model: {error}") from None
    if model in BUILTIN:
        return ModelConfig.from_folder(builtin_path(model))
    raise ValueError(f"model={model!r} is unknown{nearest(model, (*KNOWN, *BUILTIN))}")


OWN = "own"  # of a GGUF file: the numbers that it holds
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def precision_of(model: str, weights: str, kv: str) -> Precision:
    """Bytes of a model's numbers in a format's name, or in a GGUF file's own numbers.

    Raises:
        ValueError: an unknown name, or "own" for a model that is no GGUF file.
    """
    if weights != OWN:
        return Precision.of(weights, kv)
    if not is_gguf(Path(model)):
        raise ValueError(f"weights='own' is for GGUF files, and {model} is none")
    tensors = {tensor.name: tensor for tensor in read_gguf(Path(model)).tensors}
    layers = [t for name, t in tensors.items() if name not in (EMBEDDING, HEAD)]
    head = tensors.get(HEAD) or tensors[EMBEDDING]
    usual = Precision.of("int8", kv)
    return replace(usual, weight=_bytes_each(layers), head=_bytes_each([head]))


def _bytes_each(tensors: list[GgufTensor]) -> float:
    """Bytes of a number, as a mean over tensors."""
    return sum(t.data.nbytes for t in tensors) / sum(prod(t.shape) for t in tensors)


MODEL, CARDS, SEQUENCE = "openpangu-pro-moe-72b", 4, 2048
# Not published. Huawei's own serving paper (CloudMatrix384, arXiv 2506.12708) reckons with this
# acceptance of one token from a layer for multi-token prediction.
MTP = DraftCost(acceptance=0.7)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One published figure."""

    device: str
    stage: str  # decode or prefill
    batch: int  # requests on all four cards
    drafted: int  # tokens per request and step
    milliseconds: float  # of the step, for each token that it brings; of the whole for prefill
    fits: bool = False  # whether this row calibrates

    @property
    def rate(self) -> float:
        """Tokens per second and card, from batch and latency; the paper's own figures."""
        tokens = self.batch * (SEQUENCE if self.stage == "prefill" else 1)
        return 1000 * tokens / self.milliseconds / CARDS

    def predict(self, efficiency: Efficiency) -> float:
        """Milliseconds by the planner."""
        setting = _setting(self.device, efficiency)
        if self.stage == "prefill":
            return 1000 * setting.prefill(self.batch, SEQUENCE).seconds
        step = MTP.step(setting, self.batch, self.drafted, SEQUENCE)
        return 1000 * step.seconds / MTP.tokens(self.drafted)


SMALL = PublishedRow("800i-a2", "decode", 1, 0, 18.4, fits=True)
LARGE = PublishedRow("800i-a2", "decode", 456, 0, 99.3, fits=True)
ROWS = (
    SMALL,
    LARGE,
    # "Batch 2" gives the published 4828 tokens/s per card only as two for each data-parallel half.
    PublishedRow("800i-a2", "prefill", 4, 0, 424.0),
    PublishedRow("800i-a2", "decode", 584, 1, 95.6),
    PublishedRow("300i-duo", "decode", 80, 0, 99.5),
    PublishedRow("300i-duo", "decode", 128, 1, 99.7),
)


def calibrate(stated: Efficiency = STATED) -> Efficiency:
    """The two numbers that make the planner's time of `SMALL` and `LARGE` the published one.

    A small step is all fixed cost, a large one adds products: two equations, linear in the seconds
    of a layer and in one over the efficiency of products.
    """
    unit = replace(stated, compute=1.0, layer=0.0)
    small, large = (
        _setting(row.device, unit).decode(row.batch, 1, SEQUENCE) for row in (SMALL, LARGE)
    )
    layers = _setting(SMALL.device, unit).work.layers
    wanted = SMALL.milliseconds / 1000, LARGE.milliseconds / 1000
    rest = [t - (s.seconds - s.compute) for t, s in zip(wanted, (small, large))]
    over = (rest[1] - rest[0]) / (large.compute - small.compute)
    layer = (rest[0] - over * small.compute) / layers
    return replace(stated, compute=1 / over, layer=layer)


def _setting(device: str, efficiency: Efficiency) -> Setting:
    work = ForwardWork.of(config_of(MODEL))
    return Setting(work, DEVICES[device], CARDS, Precision.of("w8a8", "bf16"), efficiency)

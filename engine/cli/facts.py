"""What can be said of a checkpoint without reading its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.loader import DTYPES
from fastslow.engine.params import Mode
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.policies.meaning import meaning
from fastslow.policies.modes import load_modes

SHOWN = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes in one dtype."""

    weights: int
    kv_per_token: int


@dataclass(frozen=True, slots=True)
class Facts:
    """A checkpoint's config, tokenizer and presets.

    `tokenizer` is one line for people; `memory` maps dtype names to bytes.
    """

    config: ModelConfig
    tokenizer: str
    modes: dict[str, Mode]
    parameters: int
    memory: dict[str, Cost]

    @classmethod
    def of(cls, folder: Path, own_modes: str | None = None) -> Facts:
        """Read the small files of `folder`, and the user's presets. ValueError in one sentence for
        what does not fit."""
        config = ModelConfig.from_folder(folder)
        parameters = config.parameters()
        memory = {
            name: Cost(parameters * DTYPES[name].itemsize, config.kv_bytes_per_token(DTYPES[name]))
            for name in SHOWN
        }
        modes = load_modes(folder, config.groups, own_modes)
        return cls(config, _tokenizer(folder), modes, parameters, memory)

    def shape(self) -> dict[str, str]:
        """Lines for people."""
        c = self.config
        lines = {
            "architecture": c.architecture,
            "layers": f"{c.layers} of {c.hidden_size}",
            "attention": f"{c.heads} heads over {c.kv_heads} KV heads of {c.head_dim}",
        }
        if c.groups:
            lines["experts"] = (
                f"{c.groups} groups of {c.experts // c.groups}, each of {c.moe_intermediate_size}; "
                f"shared {c.shared_intermediate_size}"
            )
        else:
            lines["MLP"] = f"dense, {c.intermediate_size}"
        scaling = f", rope scaling {c.rope_scaling.kind}" if c.rope_scaling else ""
        lines["context"] = f"{c.context} tokens{scaling}"
        lines["vocabulary"] = str(c.vocab_size)
        lines["tokenizer"] = self.tokenizer
        return lines

    def record(self) -> dict[str, Any]:
        """For programs: sizes in bytes, counts in parameters."""
        c = self.config
        modes = {
            name: {
                **mode.model_dump(exclude={"name"}),
                "active_parameters": c.active_parameters(mode.groups),
                "words": meaning(mode, c.groups),
            }
            for name, mode in self.modes.items()
        }
        return {
            "architecture": c.architecture,
            "layers": c.layers,
            "hidden_size": c.hidden_size,
            "heads": c.heads,
            "kv_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "groups": c.groups,
            "experts": c.experts,
            "context": c.context,
            "vocab_size": c.vocab_size,
            "dtype": c.dtype,
            "tokenizer": self.tokenizer,
            "parameters": self.parameters,
            "memory": {name: asdict(cost) for name, cost in self.memory.items()},
            "modes": modes,
        }


def billions(count: int) -> str:
    """A number of parameters for people: "71.97 B"."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _tokenizer(folder: Path) -> str:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            tokenizer = load_tokenizer(folder)
            ends = ", ".join(repr(tokenizer.piece(number)) for number in sorted(tokenizer.eos_ids))
            return f"{name}, {tokenizer.vocab_size} ids, an answer ends at {ends or 'nothing'}"
    return "none: prompts are token ids"

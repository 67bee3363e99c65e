"""What `inspect` and `modes` show of a checkpoint, from its small files alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fastslow.engine.backends.loader import DTYPES
from fastslow.engine.host.gguf_file import gguf_parts, is_gguf
from fastslow.engine.kv.budget import format_bytes
from fastslow.engine.model.config import ModelConfig, RoutedUnits
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.engine.parallel.sharding import Parallel
from fastslow.engine.params import Mode
from fastslow.engine.text.templates import load_template
from fastslow.models.locate import find_tokenizer, resolve_model
from fastslow.policies.meaning import meaning
from fastslow.policies.modes import load_modes
from fastslow.tools.plan.shards import ShardPlan

FILE = "gguf"
SHOWN = ("float32", "bfloat16", "float16")
RECORDED = (
    *("architecture", "layers", "hidden_size", "heads", "kv_heads", "head_dim"),
    *("groups", "experts", "context", "vocab_size", "dtype"),
)


@dataclass(frozen=True, slots=True)
class ModeCost:
    """Bytes in one dtype."""

    weights: int
    kv_per_token: int


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """A checkpoint's config, tokenizer and presets.

    `tokenizer` and `switch` (of thinking) are one line each for people; `memory` maps dtype names to bytes.
    """

    config: ModelConfig
    tokenizer: str
    switch: str
    modes: dict[str, Mode]
    parameters: int
    memory: dict[str, ModeCost]

    @classmethod
    def of(cls, model: str, own_modes: str | None = None) -> CheckpointFacts:
        """Read a checkpoint's small files, of a GGUF file the header, and the user's presets. ValueError
        in one sentence for what does not fit."""
        folder = resolve_model(model)
        config, tokenizer = ModelConfig.from_folder(folder), _tokenizer(folder)
        weights = parameters(config)
        memory = {
            name: ModeCost(weights * DTYPES[name].itemsize, config.kv_bytes_per_token(DTYPES[name]))
            for name in SHOWN
        }
        if is_gguf(folder):  # runs in the file's own numbers
            size = sum(part.stat().st_size for part in gguf_parts(folder))
            kept = memory[config.dtype if config.dtype in SHOWN else "bfloat16"].kv_per_token
            memory = {FILE: ModeCost(size, kept), **memory}
        modes = load_modes(folder, RoutedUnits.of(config), own_modes)
        switch = _switch(folder, config.architecture)
        return cls(config, tokenizer, switch, modes, weights, memory)

    def record(self) -> dict[str, Any]:
        """For programs: sizes in bytes, counts in parameters."""
        c, units = self.config, RoutedUnits.of(self.config)
        modes = {
            name: {
                **mode.model_dump(exclude={"name"}),
                "active_parameters": active_parameters(c, mode.routed),
                "words": meaning(mode, units),
            }
            for name, mode in self.modes.items()
        }
        return {
            **{name: getattr(c, name) for name in RECORDED},
            "tokenizer": self.tokenizer,
            "thinking_switch": self.switch,
            "parameters": self.parameters,
            "memory": {name: asdict(cost) for name, cost in self.memory.items()},
            "modes": modes,
        }

    def tables(self) -> Iterator[Table]:
        """For people: shape, memory, modes."""
        shape = Table.grid(padding=(0, 2))
        for name, value in self._shape().items():
            shape.add_row(name, value)
        yield shape
        memory = Table("dtype", "weights", "KV per token", "KV of a full context")
        for name, cost in self.memory.items():
            own = (
                " (its own)" if name == (FILE if FILE in self.memory else self.config.dtype) else ""
            )
            sizes = (cost.weights, cost.kv_per_token, cost.kv_per_token * self.config.context)
            memory.add_row(name + own, *map(format_bytes, sizes))
        yield memory
        units = RoutedUnits.of(self.config)
        modes = Table("mode", units.name, "thinking", "active per token", "description")
        for mode in self.modes.values():
            running = units.running(mode.routed)
            shown = f"{running[units.name]} of {units.most}" if running else "dense"
            active = billions(active_parameters(self.config, mode.routed))
            thinking: str = mode.thinking
            if mode.auto:
                words = meaning(mode, units)
                shown, thinking, active = words[units.name], words["thinking"], "-"
            modes.add_row(mode.name, shown, thinking, active, mode.description)
        yield modes

    def _shape(self) -> dict[str, str]:
        c = self.config
        lines = {
            "architecture": c.architecture,
            "layers": f"{c.layers} layers of width {c.hidden_size}",
            "attention": f"{c.heads} heads over {c.kv_heads} KV heads of {c.head_dim}",
        }
        if c.groups:
            lines["experts"] = (
                f"{c.groups} groups of {c.experts // c.groups}, each of {c.moe_intermediate_size}; "
                f"shared {c.shared_intermediate_size}"
            )
        elif c.router is not None:
            shared = f"shared {c.shared_intermediate_size}"
            dense = f"; dense layers: {len(c.mlp_only_layers)}" if c.mlp_only_layers else ""
            lines["experts"] = (
                f"best {c.chosen} of {c.experts}, each of {c.moe_intermediate_size}; "
                f"{shared if c.shared_intermediate_size else 'none shared'}{dense}"
            )
        else:
            lines["MLP"] = f"dense, {c.intermediate_size}"
        scaling = f", rope scaling {c.rope_scaling.kind}" if c.rope_scaling else ""
        lines["context"] = f"{c.context} tokens{scaling}"
        lines["vocabulary"] = str(c.vocab_size)
        lines["tokenizer"] = self.tokenizer
        lines["thinking switch"] = self.switch
        lines["parameters"] = billions(self.parameters)
        return lines


def billions(count: int) -> str:
    """A number of parameters for people: "71.97 B"."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _tokenizer(folder: Path) -> str:
    if (tokenizer := find_tokenizer(folder)) is None:
        return "none: prompts are token ids"
    known = (name for name in ("tokenizer.json", "tokenizer.model") if (folder / name).is_file())
    ends = ", ".join(repr(tokenizer.piece(number)) for number in sorted(tokenizer.eos_ids))
    name = next(known, "of the file")
    return f"{name}, {tokenizer.vocab_size} ids, an answer ends at {ends or 'nothing'}"


def _switch(folder: Path, architecture: str) -> str:
    if (tokenizer := find_tokenizer(folder)) is None:
        return "none"
    try:
        return str(load_template(folder, tokenizer, architecture).switch)
    except ValueError as error:
        return f"unknown, {error}"


def shard_plan(config: ModelConfig, layout: str) -> ShardPlan:
    """The plan of "ep=8,tp=1", in the checkpoint's own dtype. ValueError if it does not fit."""
    return ShardPlan.of(config, Parallel.parse(layout), DTYPES[config.dtype or "float32"])


def shards_table(plan: ShardPlan) -> Table:
    """A line a rank, and what a row of a layer costs in bytes sent."""
    name, sent = str(plan.dtype).removeprefix("torch."), format_bytes(_sent(plan))
    title = f"{plan.parallel} in {name}; a row of a layer sends {sent} between ranks"
    routed = "groups" if plan.config.groups else "experts"
    titles = ("rank", "dp rank", "heads", "KV heads", routed, "weights", "KV per token")
    table = Table(*titles, title=title)
    for share in plan.shares:
        place = share.place
        held = place.groups or place.experts
        shown = f"{held.start}-{held.stop - 1}" if held else "-"
        counts = map(str, (place.rank, place.dp_rank, place.heads, place.kv_heads))
        sizes = map(format_bytes, (share.weights, share.kv_per_token))
        table.add_row(*counts, shown, *sizes)
    return table


def shards_record(plan: ShardPlan) -> dict[str, Any]:
    """For programs: sizes in bytes."""
    return {
        **{name: getattr(plan.parallel, name) for name in ("ep", "tp", "dp")},
        "sent_per_row_and_layer": _sent(plan),
        "ranks": [
            {
                **{n: getattr(share.place, n) for n in ("rank", "dp_rank", "heads", "kv_heads")},
                "groups": list(share.place.groups),
                "experts": list(share.place.experts),
                "weights": share.weights,
                "kv_per_token": share.kv_per_token,
            }
            for share in plan.shares
        ],
    }


def _sent(plan: ShardPlan) -> int:
    """Bytes that all ranks send in sum for one row of one layer."""
    return sum(plan.layer_traffic(1).values())

"""Facts that `inspect` and `modes` show of a checkpoint, from its small files alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from fastslow.engine.backends.loader import DTYPES
from fastslow.engine.host.gguf_file import gguf_files, is_gguf
from fastslow.engine.kv.budget import context_bytes, format_bytes
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.model.tensors import active_parameters, parameters
from fastslow.engine.params import Mode
from fastslow.engine.text.switches import ThinkingSwitch
from fastslow.engine.text.templates import load_template
from fastslow.engine_args import EngineArgs
from fastslow.models.hub.about import billions
from fastslow.models.locate import called, find_tokenizer, resolve_model
from fastslow.policies.meaning import THINKING, meaning
from fastslow.policies.modes import load_modes

FILE = "gguf"
SHOWN = ("float32", "bfloat16", "float16")
NO_SWITCH = str(ThinkingSwitch())
RECORDED = "architecture", "hidden_size", "context", "vocab_size", "dtype"


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """A checkpoint's config, tokenizer and presets. `tokenizer` and `switch` (of thinking) are one line each for
    people; `memory` has bytes of weights and of a token's keys and values by dtype."""

    config: ModelConfig
    tokenizer: str
    switch: str
    modes: dict[str, Mode]
    parameters: int
    memory: dict[str, dict[str, int]]

    @classmethod
    def of(cls, model: str, own_modes: str | None = None) -> CheckpointFacts:
        """Read a checkpoint's small files, of a GGUF file the header, and the user's presets. ValueError
        in one sentence for what does not fit."""
        folder = resolve_model(model, weights=False)
        with called(model, folder):
            config, tokenizer = ModelConfig.from_folder(folder), find_tokenizer(folder)
            config.check_alone()
        weights = parameters(config)
        layout = config.state_layout
        memory = {
            name: {
                "weights": weights * DTYPES[name].itemsize,
                "kv_per_token": layout.token_bytes(DTYPES[name]),
                "kv_per_context": context_bytes(
                    layout, DTYPES[name], config.context, EngineArgs.prompt_rows
                ),
                "state_per_request": layout.request_bytes(DTYPES[name]),
                "state_per_snapshot": layout.snapshot_bytes(DTYPES[name]),
                "state_per_drafted_row": layout.row_bytes(DTYPES[name]),
            }
            for name in SHOWN
        }
        if is_gguf(folder):  # runs in the file's own numbers
            size = sum(part.stat().st_size for part in gguf_files(folder))
            kept = memory[config.dtype if config.dtype in SHOWN else "bfloat16"]
            memory = {FILE: {**kept, "weights": size}, **memory}
        said, switch = "none: prompts are token ids", NO_SWITCH
        if tokenizer is not None:
            names = ("tokenizer.json", "tokenizer.model")
            name = next((name for name in names if (folder / name).is_file()), "of the file")
            ends = ", ".join(repr(tokenizer.piece(number)) for number in sorted(tokenizer.eos_ids))
            said = f"{name}, {tokenizer.vocab_size} ids, an answer ends at {ends or 'nothing'}"
            try:
                switch = str(load_template(folder, tokenizer, config.architecture).switch)
            except ValueError as error:
                switch = f"unknown, {error}"
        modes = load_modes(folder, RoutedUnits.of(config), own_modes, switch != NO_SWITCH)
        return cls(config, said, switch, modes, weights, memory)

    def words(self, mode: Mode) -> dict[str, str]:
        """Describe what a mode does with this model: see `meaning`."""
        said = meaning(mode, RoutedUnits.of(self.config))
        if self.switch == NO_SWITCH and said["thinking"] == THINKING["on"]:
            said["thinking"] = f"{THINKING['auto']}, which has no switch"
        return said

    def record(self) -> dict[str, Any]:
        """For programs: sizes in bytes, counts in parameters."""
        c, units = self.config, RoutedUnits.of(self.config)
        modes = {
            name: {
                **mode.model_dump(exclude={"name"}),
                "active_parameters": active_parameters(c, mode.routed),
                "words": self.words(mode),
            }
            for name, mode in self.modes.items()
        }
        return {
            **{name: getattr(c, name) for name in RECORDED},
            "layers": len(c.layers),
            **_attention(c),
            "groups": units.most if units.name == "groups" else 0,
            "experts": c.routed.experts if c.routed else 0,
            "tokenizer": self.tokenizer,
            "thinking_switch": self.switch,
            "parameters": self.parameters,
            "memory": self.memory,
            "modes": modes,
        }

    def tables(self) -> Iterator[Table]:
        """For people: shape, memory."""
        shape = Table.grid(padding=(0, 2))
        for name, value in self._shape().items():
            shape.add_row(name, value)
        yield shape
        states = {"request": "a request", "snapshot": "a snapshot", "drafted_row": "a drafted row"}
        if not self.config.state_layout.running:
            states.clear()
        columns = [f"state of {said}" for said in states.values()]
        memory = Table("dtype", "weights", "KV per token", "KV of a full context", *columns)
        own = FILE if FILE in self.memory else self.config.dtype
        for name, cost in self.memory.items():
            token = cost["kv_per_token"]
            whole = cost["kv_per_context"] + cost["state_per_request"]
            each = [cost[f"state_per_{name}"] for name in states]
            sizes = map(format_bytes, (cost["weights"], token, whole, *each))
            memory.add_row(f"{name} (its own)" if name == own else name, *sizes)
        yield memory

    def _shape(self) -> dict[str, str]:
        c, routed = self.config, self.config.routed
        lines = {
            "architecture": c.architecture,
            "layers": f"{len(c.layers)} layers of width {c.hidden_size}",
        }
        if heads := _attention(c):
            said = "{heads} heads over {kv_heads} KV heads of {head_dim}"
            lines["attention"] = said.format(**heads)
        if m := next((x.mixer for x in c.layers if isinstance(x.mixer, LatentAttention)), None):
            lines["attention"] = f"{m.heads} heads over one latent of {m.latent} + {m.rope.dim}"
        plain = [layer.ffn for layer in c.layers if isinstance(layer.ffn, DenseMlp)]
        if routed is not None:
            lines["experts"] = _experts(routed, len(plain))
        elif plain:
            lines["MLP"] = f"dense, {plain[0].width}"
        scalings = [rope.scaling for rope in c.ropes if rope.scaling is not None]
        scaling = f", rope scaling {scalings[0].kind}" if scalings else ""
        lines["context"] = f"{c.context} tokens{scaling}"
        lines["vocabulary"] = str(c.vocab_size)
        lines["tokenizer"] = self.tokenizer
        lines["thinking switch"] = self.switch
        lines["parameters"] = billions(self.parameters)
        return lines


def _attention(config: ModelConfig) -> dict[str, int]:
    """Heads of the first layer of attention; nothing where there is none."""
    mixers = (layer.mixer for layer in config.layers)
    first = next((m for m in mixers if isinstance(m, GroupedAttention)), None)
    names = ("heads", "kv_heads", "head_dim")
    return {} if first is None else {name: getattr(first, name) for name in names}


def _experts(routed: RoutedExperts, dense: int) -> str:
    router, each = routed.router, routed.expert.width
    shared = f"shared {routed.shared.width}" if routed.shared else "none shared"
    if isinstance(router, GroupRouter):
        size = routed.experts // router.groups
        return f"{router.groups} groups of {size}, each of {each}; {shared}"
    others = f"; dense layers: {dense}" if dense else ""
    inside = f" in {router.kept_groups} of {router.groups} groups" if router.groups else ""
    return f"best {router.chosen} of {routed.experts}{inside}, each of {each}; {shared}{others}"

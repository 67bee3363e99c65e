"""A model with two recurrent layers that compares each row that it runs with plain decoding, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from fastslow.engine.kv.state.layout import RowState, RunningState, StateLayout
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens
from fastslow.engine.rows import Rows, RunningRows
from fastslow.engine.types import Floats, ModelOutput

DIM, WINDOW, VOCAB, EOS = 6, 3, 9, 2
RECURRENT = RunningState(((DIM, DIM), (WINDOW, DIM)), ((DIM,),))
LAYOUT = StateLayout((RECURRENT, RowState(1, 3, 3), RECURRENT))

draws = np.random.default_rng(0)
EMBEDDING, HEAD = (draws.standard_normal((VOCAB, DIM)).astype(np.float32) for _ in range(2))
CONV, MIX = (draws.standard_normal((3, n, DIM)).astype(np.float32) for n in (WINDOW, 3 * DIM))

HEAD[EOS] /= 2  # answers are long


class LayerState(NamedTuple):
    """After a text, of one layer."""

    memory: Floats
    window: Floats


def start() -> LayerState:
    return LayerState(np.zeros((DIM, DIM), np.float32), np.zeros((WINDOW, DIM), np.float32))


def enter(layer: int, state: LayerState, x: Floats) -> tuple[LayerState, Floats]:
    """A token through a short convolution and a gated delta rule; returns the layer's output, too."""
    window = np.concatenate((state.window[1:], x[None]))
    mixed = (MIX[layer] * (window * CONV[layer]).sum(0)).sum(1)
    q, k, v = np.split(mixed / (1 + abs(mixed)), 3)
    gate, write = np.float32(0.9) - abs(q[0]) / 4, abs(k[0])
    memory = state.memory * gate
    memory = memory + k[:, None] * ((v - (memory * k[:, None]).sum(0)) * write)
    return LayerState(memory, window), x + (memory * q[:, None]).sum(0)


def embedded(token: int, groups: int) -> Floats:
    found: Floats = EMBEDDING[token % VOCAB] * np.float32(1 + groups / 8)
    return found


class PlainText:
    """A text by plain decoding: its states, and what its last token gave."""

    def __init__(self, states: tuple[LayerState, LayerState], x: Floats) -> None:
        self.states, self.x = states, x
        self._after: dict[tuple[int, ...], PlainText] = {}

    def after(self, key: tuple[int, ...]) -> PlainText:
        """With one more token: (token, position, groups)."""
        if key not in self._after:
            first, x = enter(0, self.states[0], embedded(key[0], key[2]))
            second, x = enter(2, self.states[1], x)
            self._after[key] = PlainText((first, second), x)
        return self._after[key]

    @property
    def best(self) -> int:
        return int((HEAD * self.x).sum(1).argmax())


NO_TEXT = PlainText((start(), start()), np.zeros(DIM, np.float32))


class RecurrentModel:
    """Its keys say which text a row follows. run: rows so far. wrong: those that differ from plain decoding."""

    dtype, device, storage, mtp = torch.float32, torch.device("cpu"), KVStorage, None
    config: Any = SimpleNamespace(vocab_size=VOCAB, context=400, rope_length=lambda _: 0, state_layout=LAYOUT)

    def __init__(self) -> None:
        self.run = self.wrong = 0

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        assert rows.running is not None and kv.running is not None
        found = np.empty((len(rows.tokens), DIM), np.float32)
        keys = np.stack([rows.tokens, rows.positions, rows.groups], 1)
        for b, running in enumerate(rows.running):
            own = slice(rows.starts[b], rows.starts[b + 1])
            text, texts, parents = NO_TEXT, list[PlainText](), rows.parents[own].tolist()
            for key in kv.k[1][torch.from_numpy(rows.contexts[b]), 0].int().tolist():
                text = text.after(tuple(key))
            for key, parent in zip(keys[own].tolist(), parents, strict=True):
                texts.append((text if parent < 0 else texts[parent]).after(tuple(key)))
            x = np.stack([embedded(key[0], key[2]) for key in keys[own].tolist()])
            for layer in (0, 2):
                x = self._layer(layer, running, x, parents, kv.running)
            self.run += len(x)
            self.wrong += sum(not np.array_equal(row, plain.x) for row, plain in zip(x, texts, strict=True))
            found[own] = x
        kv.k[1][torch.from_numpy(rows.slots), 0] = torch.from_numpy(keys).float()
        logits = torch.from_numpy((found[rows.outputs][:, None] * HEAD).sum(-1))
        return ModelOutput(logits, None, best_tokens(logits, rows.only_best))

    def _layer(self, layer: int, r: RunningRows, x: Floats, parents: Sequence[int], states: RunningStates) -> Floats:
        memory, window = (part.numpy() for part in states.state[layer])
        ring, out = states.rows[layer][0][r.place].numpy(), x.copy()
        state = LayerState(memory[r.place].copy(), window[r.place].copy())
        stable = [(ring[at], -1) for at in r.before[: r.folds]] + [(x[i], i) for i in range(r.stable)]
        for n, (row, i) in enumerate(stable, 1):
            state, y = enter(layer, state, row)
            if i >= 0:
                out[i] = y
            for place in [to for at, to in ((len(stable), r.place), *r.snapshots) if at == n]:
                memory[place], window[place] = state
        for at in r.before[r.folds :]:
            state, _ = enter(layer, state, ring[at])
        after: dict[int, LayerState] = {}
        for i in range(r.stable, len(x)):
            after[i], out[i] = enter(layer, after.get(parents[i], state), x[i])
            ring[r.at[i]] = x[i]
        return out

    def layer_subset(self, layers: Sequence[int]) -> RecurrentModel:
        raise ValueError("it has all layers")

"""openPangu 2.0 as plainly as can be, in numpy: the reference that a family of it is held against, and what must hold of
it whatever its weights are. A model of a few numbers; all layers but each third see a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]
STREAMS, ROUNDS, EPS, THETA = 4, 20, 1e-5, 6.4e6
SIZES: dict[str, int] = {"hidden": 32, "vocab": 40, "layers": 4, "dense": 1, "heads": 2, "queries": 24, "latent": 16}
SIZES |= {"nope": 8, "turning": 8, "values": 8, "sinks": 3, "window": 6, "experts": 6, "chosen": 2, "inner": 24}
TOKENS = np.random.default_rng(5).integers(0, SIZES["vocab"], 20)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def normed(x: Array, weight: Array) -> Array:
    scaled: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight
    return scaled


def softmax(x: Array) -> Array:
    found: Array = np.exp(x - x.max(-1, keepdims=True))
    return found / found.sum(-1, keepdims=True)


def doubly(res: Array) -> Array:
    """Sinkhorn's rounds over rows that are distributions: columns, then rows and columns in turn."""
    res = res / res.sum(-2, keepdims=True)
    for _ in range(ROUNDS - 1):
        res = res / res.sum(-1, keepdims=True)
        res = res / res.sum(-2, keepdims=True)
    return res


def turned(x: Array, positions: Array) -> Array:
    """Pairs lie half of the dims apart."""
    half = x.shape[-1] // 2
    angles = positions.reshape(-1, *[1] * (x.ndim - 1)) * THETA ** -(np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)), -1)


class Pangu2:
    """Random weights, made when they are asked for; float64, the whole text at once."""

    def __init__(self, **sizes: int) -> None:
        self.c, self._made = SIZES | sizes, dict[str, Array]()

    def w(self, name: str, *shape: int) -> Array:
        if name not in self._made:
            numbers = np.random.default_rng([*name.encode()]).normal(size=shape)
            self._made[name] = 1 + 0.1 * numbers if len(shape) == 1 else numbers * shape[-1] ** -0.5
        return self._made[name]

    def norm(self, name: str, x: Array) -> Array:
        return normed(x, self.w(name, x.shape[-1]))

    def linear(self, name: str, x: Array, outputs: int) -> Array:
        return x @ self.w(name, outputs, x.shape[-1]).T

    def mixing(self, name: str, streams: Array) -> tuple[Array, Array, Array]:
        """What a sublayer reads of the streams, what they take of it, and of each other: [T, 4] twice, [T, 4, 4]."""
        flat = self.norm(f"{name}.gamma", streams.reshape(len(streams), -1))
        pre, post, res = np.split(self.linear(f"{name}.phi", flat, 24), (4, 8), -1)
        alpha, bias = self.w(f"{name}.alpha", 3), self.w(f"{name}.bias", 24)
        rows = softmax((alpha[2] * res + bias[8:]).reshape(-1, STREAMS, STREAMS))
        return sigmoid(alpha[0] * pre + bias[:4]), 2 * sigmoid(alpha[1] * post + bias[4:8]), doubly(rows)

    def connected(self, name: str, streams: Array, sublayer: Callable[[Array], Array]) -> Array:
        pre, post, res = self.mixing(name, streams)
        x = self.norm(f"{name}.in", np.einsum("ts,tsh->th", pre, streams))
        y = self.norm(f"{name}.out", sublayer(x))
        mixed: Array = post[..., None] * y[:, None] + np.einsum("tsj,tjh->tsh", res, streams)
        return mixed

    def merged(self, streams: Array) -> Array:
        flat = self.norm("merge.gamma", streams.reshape(len(streams), -1))
        weights = sigmoid(
            self.w("merge.alpha", 1) * self.linear("merge.phi", flat, STREAMS) + self.w("merge.bias", STREAMS)
        )
        found: Array = np.einsum("ts,tsh->th", weights, streams)
        return found

    def conv(self, name: str, x: Array) -> Array:
        """A row, and what a causal convolution of three rows adds to it, each dim for itself."""
        taps, padded = self.w(name, x.shape[-1], 3), np.pad(x, ((2, 0), (0, 0)))
        return x + sum(padded[j : j + len(x)] * taps[:, j] for j in range(3))

    def attention(self, name: str, x: Array, window: int, positions: Array | None = None) -> Array:
        """The expanded form. Learned latents and rotated keys come before the text, and every row sees them."""
        c, count = self.c, len(x)
        places = np.arange(count) if positions is None else positions
        q = self.norm(f"{name}.q_norm", self.conv(f"{name}.q_conv", self.linear(f"{name}.q_a", x, c["queries"])))
        q = self.linear(f"{name}.q_b", q, c["heads"] * (c["nope"] + c["turning"])).reshape(count, c["heads"], -1)
        q = np.concatenate((q[..., : c["nope"]], turned(q[..., c["nope"] :], places)), -1)
        both = self.linear(f"{name}.kv_a", x, c["latent"] + c["turning"])
        latent = self.norm(f"{name}.kv_norm", self.conv(f"{name}.kv_conv", both[:, : c["latent"]]))
        latent = np.concatenate((self.w(f"{name}.sink", c["sinks"], c["latent"]), latent))
        keys = turned(both[:, c["latent"] :], places)
        keys = np.concatenate((self.w(f"{name}.sink_key", c["sinks"], c["turning"]), keys))
        made = self.linear(f"{name}.kv_b", latent, c["heads"] * (c["nope"] + c["values"]))
        made = made.reshape(len(latent), c["heads"], -1)
        scores = np.einsum("qhd,khd->hqk", q[..., : c["nope"]], made[..., : c["nope"]])
        scores = (scores + np.einsum("qhd,kd->hqk", q[..., c["nope"] :], keys)) * (c["nope"] + c["turning"]) ** -0.5
        ago = np.arange(count)[:, None] - np.arange(count)
        seen = np.pad((ago >= 0) & (ago < (window or count)), ((0, 0), (c["sinks"], 0)), constant_values=True)
        weights = softmax(np.where(seen, scores, -np.inf))
        out = np.einsum("hqk,khd->qhd", weights, made[..., c["nope"] :]).reshape(count, -1)
        return self.linear(f"{name}.o", self.conv(f"{name}.o_conv", out), c["hidden"])

    def mlp(self, name: str, x: Array) -> Array:
        gate, up = (self.linear(f"{name}.{side}", x, self.c["inner"]) for side in ("gate", "up"))
        return self.linear(f"{name}.down", gate * sigmoid(gate) * up, self.c["hidden"])

    def experts(self, name: str, x: Array) -> Array:
        """Sigmoids, a bias of the choice, weights that add up to 2.5; and a shared one."""
        scores, out = sigmoid(self.linear(f"{name}.router", x, self.c["experts"])), self.mlp(f"{name}.shared", x)
        order = np.argsort(-(scores + self.w(f"{name}.choice", self.c["experts"])), -1, "stable")
        for t, chosen in enumerate(order[:, : self.c["chosen"]]):
            for e in chosen:
                out[t] += 2.5 * scores[t, e] / scores[t, chosen].sum() * self.mlp(f"{name}.{e}", x[t : t + 1])[0]
        return out

    def ffn(self, n: int, x: Array) -> Array:
        return self.mlp(f"{n}.mlp", x) if n < self.c["dense"] else self.experts(f"{n}.mlp", x)

    def hidden(self, tokens: Any) -> Array:
        """After the last norm."""
        streams = np.repeat(self.w("embed", self.c["vocab"], self.c["hidden"])[tokens][:, None], STREAMS, 1)
        for n in range(self.c["layers"]):
            window = 0 if n % 3 == 2 else self.c["window"]
            streams = self.connected(f"{n}.attn", streams, lambda x, n=n, w=window: self.attention(f"{n}.attn", x, w))
            streams = self.connected(f"{n}.ffn", streams, lambda x, n=n: self.ffn(n, x))
        return self.norm("norm", self.merged(streams))

    def drafting(self, tokens: Any, heads: int = 3) -> list[Array]:
        """What three heads for multi-token prediction make of a text: row p of head k + 1 of token p and of
        row p - 1 of head k; the first reads the model's own. One stream, no rows before those that there are."""
        c, states = self.c, [self.hidden(tokens)]
        for k in range(heads):
            own, embedded = f"mtp.{k}", self.w("embed", c["vocab"], c["hidden"])[tokens[k + 1 :]]
            pair = self.norm(f"{own}.e", embedded), self.norm(f"{own}.h", states[-1][:-1])
            x = self.linear(f"{own}.eh", np.concatenate(pair, -1), c["hidden"])
            places = np.arange(len(x)) + k + 1
            x = x + self.attention(f"{own}.attn", self.norm(f"{own}.in", x), 0, places)
            states.append(self.norm(f"{own}.norm", x + self.experts(f"{own}.mlp", self.norm(f"{own}.after", x))))
        return states[1:]


@pytest.fixture(scope="module")
def model() -> Pangu2:
    return Pangu2()


def test_streams_are_mixed_by_doubly_stochastic_matrices(model: Pangu2) -> None:
    pre, post, res = model.mixing("a", np.random.default_rng(0).normal(size=(9, STREAMS, SIZES["hidden"])))
    np.testing.assert_allclose(res.sum(-2), 1, atol=1e-12)
    np.testing.assert_allclose(res.sum(-1), 1, atol=1e-6)
    assert (res > 0).all() and ((0 < pre) & (pre < 1)).all() and ((0 < post) & (post < 2)).all()


def test_no_row_sees_a_later_one(model: Pangu2) -> None:
    whole, other = model.hidden(TOKENS), TOKENS.copy()
    other[12:] = (other[12:] + 1) % SIZES["vocab"]
    np.testing.assert_array_equal(model.hidden(other)[:12], whole[:12])
    assert np.abs(model.hidden(other)[12] - whole[12]).max() > 1e-3
    for k, (one, two) in enumerate(zip(model.drafting(TOKENS), model.drafting(other), strict=True)):
        assert len(one) == len(TOKENS) - k - 1
        np.testing.assert_array_equal(one[: 11 - k], two[: 11 - k])
        assert np.abs(one[11 - k] - two[11 - k]).max() > 1e-3


def test_windows_and_convolutions_reach_as_far_as_they_should(model: Pangu2) -> None:
    """A key is made of its row and of two before it; what heads saw is convolved, too."""
    x = np.random.default_rng(1).normal(size=(30, SIZES["hidden"]))
    changed = x.copy()
    changed[3] += 1
    moved = np.abs(model.attention("0.attn", changed, 6) - model.attention("0.attn", x, 6)).max(-1) > 1e-9
    assert np.flatnonzero(moved).tolist() == [*range(3, 3 + 2 + 6 + 2)]
    moved = np.abs(model.attention("0.attn", changed, 0) - model.attention("0.attn", x, 0)).max(-1) > 1e-9
    assert np.flatnonzero(moved).tolist() == [*range(3, 30)]


def test_scores_depend_on_distances_but_for_those_of_sinks(model: Pangu2) -> None:
    x, late = np.random.default_rng(2).normal(size=(9, SIZES["hidden"])), np.arange(9) + 100
    alone = Pangu2(sinks=0)
    np.testing.assert_allclose(alone.attention("a", x, 0, late), alone.attention("a", x, 0), atol=1e-9)
    assert np.abs(model.attention("a", x, 0, late) - model.attention("a", x, 0)).max() > 1e-3

"""A draft head on the kernels: one decoder layer with its entry, and trees in one call."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.formats import Format, float_format, pack_rows
from fastslow.engine.backends.cpu.library import FLOAT32, FLOAT64, INT64, address
from fastslow.engine.backends.cpu.pieces import matrices, orders
from fastslow.engine.backends.cpu.store import PAGE, huge_pages
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.host.files import shown
from fastslow.engine.types import Features, Floats, Ints, Tree

PADDING = 4096  # kernels fetch past the end of a matrix
LINE = 64
MOST = 1e30  # of rope_theta and eps, which the kernels hold as floats
SIZES = ("hidden", "heads", "kv_heads", "head_dim", "neurons", "window")


@dataclass(frozen=True, slots=True)
class DraftShape:
    """Sizes of a head's layer; hidden is the target's. window: the latest rows, which attention reads."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    rope_theta: float = 10000.0
    eps: float = 1e-5
    window: int = 512

    @property
    def queries(self) -> int:
        """Rows of the queries' matrix."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Rows of the keys' matrix."""
        return self.kv_heads * self.head_dim

    def check(self) -> None:
        """ValueError, naming the field, its value and the limit, for what the kernels cannot run."""
        sizes = {name: getattr(self, name) for name in SIZES}
        library.check_limits(**sizes)
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}, and "
                f"head_dim={self.head_dim} even"
            )
        library.check_limits(heads_per_kv_head=self.heads // self.kv_heads, inputs=self.queries)
        for name, value in (("rope_theta", self.rope_theta), ("eps", self.eps)):
            if type(value) not in (int, float) or not 0 < value <= MOST:
                what = f"{name}={shown(value)}"
                raise ValueError(f"{what} must be a number above 0, at most {MOST:g}")


class PairedEntry(NamedTuple):
    """Work of an EAGLE-3 head in front of its layer, whose "qkv" reads the normed embedding and the
    normed hidden state side by side.

    frequencies: float64 [head_dim / 2], radians per position. level: this number of features is divided by
    their root mean square together; 0: none. normed_residual: the layer adds to the normed hidden state.
    normed_output: the head's output is normed when the next step reads it.
    """

    frequencies: Tensor
    level: int = 0
    normed_residual: bool = False
    normed_output: bool = False


class NewRows(NamedTuple):
    """Rows to add to B texts, all different: `sizes` of each. after: R tokens, text by text, each the one after
    its row. features: [R, F]."""

    texts: Sequence[int]
    sizes: Sequence[int]
    after: Sequence[int]
    features: Features


class TreeLimits(NamedTuple):
    """Limits of the trees that a head drafts.

    nodes: [B], the most of each tree; 0 = none. width: nodes of a depth that get children, and children of
    each; 1 gives chains. depth: of the deepest node. min_scores: [B]; nodes less likely than this, with all
    before them, are left out; 0..1.
    """

    nodes: Sequence[int]
    width: int
    depth: int
    min_scores: Sequence[float]


class _TreeRoom:
    """Memory of a call of `grow` for so many texts, nodes and so on, which is used again: making it takes longer
    than a level of a tree."""

    def __init__(self, count: int, most: int, width: int, depth: int) -> None:
        self._made_for = count, width, depth
        self._most = most
        self.numbers = np.empty(3 * count, dtype=np.int64)  # texts, sizes and nodes
        self.least = np.empty(count, dtype=np.float32)
        self.sizes = np.empty(count, dtype=np.int64)
        self.tokens, self.parents = np.empty((2, count, most), dtype=np.int64)
        self.scores = np.empty((count, most), dtype=np.float32)
        start = address("texts, sizes and nodes", self.numbers, INT64, 3 * count)
        self.args = structures.DraftArgs(
            requests=count,
            most=most,
            width=width,
            depth=depth,
            least=address("min_scores", self.least, FLOAT32, count),
            contexts=start,
            fresh=start + 8 * count,
            nodes=start + 16 * count,
            counts=address("sizes", self.sizes, INT64, count),
            tokens=address("tokens", self.tokens, INT64, count * most),
            parents=address("parents", self.parents, INT64, count * most),
            scores=address("scores", self.scores, FLOAT32, count * most),
        )

    def fits(self, count: int, most: int, limits: TreeLimits) -> bool:
        return most <= self._most and self._made_for == (count, limits.width, limits.depth)


class DraftKernels:
    """Runs a head; `fastslow.draft.head.runner.HeadRunner` describes the methods.

    Activations are int8 with a scale per 32, keys and values bfloat16. A row's bits depend neither on
    other rows nor on the number of threads, torch's.

    Args:
        weights: matrices "fuse" [H, F], "entry" [H, 2H], "qkv", "out", "gate_up", "down"; vectors [H]
            "embedding_norm", "hidden_norm", "attention_norm", "mlp_norm", "norm". With `paired`:
            "qkv" of [.., 2H], no "entry" and no "attention_norm", "head" [D, H]; and any matrix may
            have a bias, such as "qkv_bias". Where heads are normed: "query_norm", "key_norm".
        head: [V, H], of which the rows `ids` are taken; None: the weights have one.
        ids: int64 [D], the tokens of the head's rows.
        embedding: [V, H], float32 or bfloat16; not copied. A file's rows are read as they are needed.
        form: of the matrices. Between two drafts the target's weights pass through the caches, so
            the bytes of a head are most of its time: int4 took three quarters of int8's.

    ValueError: the shape or a tensor is not what the kernels take; or a text is unknown, a token is none of the
    embedding's, a number is out of its range. MemoryError: there is none left. Every method may raise both.
    """

    def __init__(
        self,
        shape: DraftShape,
        weights: Mapping[str, Tensor],
        head: Tensor | RowFile | None,
        ids: Tensor,
        embedding: Tensor | RowFile,
        form: Format = Format.INT4,
        paired: PairedEntry | None = None,
    ) -> None:
        shape.check()
        self.shape, self.form = shape, form
        self.features = weights["fuse"].shape[1]
        self._kernels = library.kernels()
        if isinstance(embedding, Tensor):
            known = embedding.dtype in (torch.float32, torch.bfloat16)
            embedding = (embedding if known else embedding.float()).contiguous()
        self._ids: Ints = ids.numpy().astype(np.int64)
        self._memory: list[NDArray[np.generic]] = [self._ids]  # what the kernels point to
        self._free = np.empty(0, dtype=np.uint8)
        self._trees = _TreeRoom(1, 1, 1, 1)
        inner = shape.queries
        heads = orders.heads_order(shape.heads + 2 * shape.kv_heads, shape.head_dim)
        plain, head_rows = orders.plain_order(shape.hidden), orders.plain_order(len(ids)).copy()
        if head is not None:
            head_rows[head_rows >= 0] = self._ids
        powers = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        turning = shape.rope_theta**-powers if paired is None else paired.frequencies
        gate_up = orders.gate_up_order(shape.neurons)

        def pack(name: str, rows: Ints, inputs: int) -> structures.CMatrix:
            return self._pack(weights[name], rows, inputs, weights.get(f"{name}_bias"))

        layer = structures.CLayer(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            value_dim=shape.head_dim,
            attention_norm=None if paired else self._vector(weights["attention_norm"]),
            mlp_norm=self._vector(weights["mlp_norm"]),
            query_norm=self._vector(weights.get("query_norm"), "head_dim"),
            key_norm=self._vector(weights.get("key_norm"), "head_dim"),
            **matrices.head_matrices(
                pack("qkv", heads, 2 * shape.hidden if paired else shape.hidden),
                (shape.heads, shape.kv_heads, shape.kv_heads),
                len(orders.plain_order(shape.head_dim)),
            ),
            out=pack("out", plain, inner),
            gate_up=pack("gate_up", gate_up, shape.hidden),
            down=pack("down", plain, shape.neurons),
        )
        whole = structures.CShape(
            layers=1,
            hidden=shape.hidden,
            angles=shape.head_dim // 2,
            neurons=shape.neurons,
            vocabulary=len(self._ids),
            eps=shape.eps,
            embedding_format=float_format(embedding.dtype),
            embedding_rows=len(embedding),
            **_place(embedding, shape.hidden),
            norm=self._vector(weights["norm"]),
            head=self._pack(weights["head"] if head is None else head, head_rows, shape.hidden),
            fuse=pack("fuse", plain, self.features),
            entry=structures.CMatrix() if paired else pack("entry", plain, 2 * shape.hidden),
            embedding_norm=self._vector(weights["embedding_norm"]),
            hidden_norm=self._vector(weights["hidden_norm"]),
            level=shape.hidden if paired is None else paired.level,
            normed_residual=paired is not None and paired.normed_residual,
            normed_output=paired is not None and paired.normed_output,
        )
        made = ctypes.c_void_p()
        failed = self._kernels.fs_draft_new(
            ctypes.byref(whole),
            ctypes.byref(layer),
            address("ids", self._ids, INT64, len(self._ids)),
            shape.window,
            address("frequencies", turning.numpy(), FLOAT64, shape.head_dim // 2),
            ctypes.byref(made),
        )
        library.check(failed, "making the draft head")
        self._handle = handle = made.value or 0
        self._end = weakref.finalize(self, _delete, self._kernels, handle, self._memory, embedding)

    def open(self, position: int) -> int:
        return self._opened(self._kernels.fs_draft_open(self._handle, position))

    def fork(self, text: int, drop: int) -> int:
        return self._opened(self._kernels.fs_draft_fork(self._handle, text, drop))

    def close(self, text: int) -> None:
        self._check(self._kernels.fs_draft_close(self._handle, text))

    def skip(self, text: int, position: int) -> None:
        self._check(self._kernels.fs_draft_skip(self._handle, text, position))

    def read(self, rows: NewRows) -> None:
        """A row takes a third of what it takes in `grow`."""
        count = len(rows.texts)
        numbers = np.array([*rows.texts, *rows.sizes], dtype=np.int64)
        start = address("texts and sizes", numbers, INT64, 2 * count)
        tokens, values = self._given(rows)
        args = structures.DraftArgs(
            threads=torch.get_num_threads(),
            requests=count,
            rows=len(tokens),
            contexts=start,
            fresh=start + 8 * count,
            after=address("after", tokens, INT64, len(tokens)),
            features=address("features", values, FLOAT32, values.size),
        )
        self._check(self._kernels.fs_draft_read(self._handle, ctypes.byref(args)))

    def extend_vocab(self, text: int, ids: Sequence[int], rows: Floats) -> None:
        """Add tokens that only this text may get, with their rows f32 [n, H] of the target's head."""
        count = len(ids)
        some = np.array(ids, dtype=np.int64)
        at = address("ids", some, INT64, count)
        data = address("rows of the head", rows, FLOAT32, count * self.shape.hidden)
        self._check(self._kernels.fs_draft_words(self._handle, text, at, data, count))

    def grow(self, rows: NewRows, limits: TreeLimits) -> list[Tree]:
        if not rows.texts:
            return []
        count, most = len(rows.texts), max(*limits.nodes, 1)
        if not self._trees.fits(count, most, limits):
            library.check_limits(nodes=int(most))
            self._trees = _TreeRoom(count, most, limits.width, limits.depth)
        room = self._trees
        room.numbers[:] = [*rows.texts, *rows.sizes, *limits.nodes]
        room.least[:] = limits.min_scores
        tokens, values = self._given(rows)
        args = room.args
        args.threads, args.rows = torch.get_num_threads(), len(tokens)
        args.after = address("after", tokens, INT64, len(tokens))
        args.features = address("features", values, FLOAT32, values.size)
        self._check(self._kernels.fs_draft_grow(self._handle, ctypes.byref(args)))
        return [
            Tree(
                room.tokens[b, :size].tolist(),
                room.parents[b, :size].tolist(),
                scores=room.scores[b, :size].tolist(),
            )
            for b, size in enumerate(room.sizes.tolist())
        ]

    def advance(self, contexts: Sequence[int], tokens: Sequence[int]) -> None:
        """Add one token to each text's chain, which begins anew after `grow`."""
        both = np.array([*contexts, *tokens], dtype=np.int64)
        count = len(contexts)
        at, threads = address("texts and tokens", both, INT64, 2 * count), torch.get_num_threads()
        done = self._kernels.fs_draft_advance(self._handle, at, at + 8 * count, count, threads)
        self._check(done)

    def logits(self, text: int) -> Floats:
        size, at = ctypes.c_int64(), ctypes.c_void_p()
        into = ctypes.byref(at), ctypes.byref(size)
        self._check(self._kernels.fs_draft_logits(self._handle, text, *into))
        if not size.value:
            return np.empty(0, dtype=np.float32)
        pointer = ctypes.cast(at, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (size.value,))

    def _opened(self, text: int) -> int:
        self._check(max(-text, 0))
        return text

    def _check(self, failed: int) -> None:
        library.check(failed, "drafting")

    def _given(self, rows: NewRows) -> tuple[Ints, Floats]:
        """Tokens and features of rows. ValueError where there are not as many of both."""
        tokens = np.array(rows.after, dtype=np.int64)
        values = np.ascontiguousarray(as_floats(rows.features))
        address("features", values, FLOAT32, len(tokens) * self.features)
        return tokens, values

    def _pack(
        self, matrix: Tensor | RowFile, rows: Ints, inputs: int, bias: Tensor | None = None
    ) -> structures.CMatrix:
        tiles = self._room(len(rows) // library.TILE * library.tile_bytes(self.form, inputs))
        pack_rows(tiles, self.form, inputs, rows, matrix.__getitem__)
        at, biases = address("packed rows", tiles, tiles.dtype, tiles.size), None
        if bias is not None:
            added = self._room(4 * len(rows)).view(np.float32)
            added[rows >= 0] = bias.float().numpy()[rows[rows >= 0]]
            biases = address("biases", added, FLOAT32, len(rows))
        return structures.CMatrix(at, biases, self.form, inputs, len(rows))

    def _vector(self, values: Tensor | None, size: str = "hidden") -> int | None:
        if values is None:
            return None
        if len(values) != (wanted := getattr(self.shape, size)):
            raise ValueError(f"a vector of the head has {len(values)} numbers, not {size}={wanted}")
        memory = self._room(4 * len(values)).view(np.float32)
        memory[:] = values.float().numpy()
        return address("vector", memory, FLOAT32, len(values))

    def _room(self, size: int) -> NDArray[np.uint8]:
        """Memory that starts on a cache line, kept as long as the head: in huge pages where there are any, since a
        head that rested is read from memory, and finding small pages takes longer than reading them."""
        used = -(-(size + PADDING) // LINE) * LINE
        if used > len(self._free):
            memory = huge_pages(max(used, PAGE))
            if memory is None:
                memory = np.zeros(used + LINE, dtype=np.uint8)
            self._memory.append(memory)
            self._free = memory[-memory.ctypes.data % LINE :]
        found, self._free = self._free[:size], self._free[used:]
        return found


def as_floats(features: Features) -> Floats:
    """As an array of float32 on the CPU."""
    if isinstance(features, np.ndarray):
        return features
    found: Floats = features.to("cpu", torch.float32).numpy()
    return found


def _place(embedding: Tensor | RowFile, width: int) -> dict[str, int]:
    """Return the place of the embedding: fields of `structures.CShape`."""
    if embedding.shape[1] != width:
        raise ValueError(f"the target's embedding is {embedding.shape[1]} wide, not hidden={width}")
    if isinstance(embedding, Tensor):
        return {"embedding": embedding.data_ptr()}
    end = embedding.at + len(embedding) * width * embedding.dtype.itemsize
    if os.fstat(embedding.file.number).st_size < end:
        raise ValueError(f"{embedding.file.path} ends before byte {end}")
    return {"embedding_at": embedding.at, "embedding_file": embedding.file.number}


def _delete(kernels: ctypes.CDLL, handle: int, *held: object) -> None:
    """The kernels go before what they point to."""
    kernels.fs_draft_delete(handle)

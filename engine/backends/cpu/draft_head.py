"""A draft head on the kernels: one decoder layer with an entry of its own, and trees in one call."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.cpu import library, packed
from fastslow.engine.backends.cpu.formats import Format, float_format
from fastslow.engine.model.row_file import RowFile
from fastslow.engine.types import Floats, Ints, Tree

PADDING = 4096  # kernels fetch past the end of a matrix


@dataclass(frozen=True, slots=True)
class DraftShape:
    """Sizes of a head's layer.

    Attributes:
        hidden, heads, kv_heads, head_dim, neurons: as in a decoder layer; hidden is H, the target's.
        rope_theta, eps: of rotary positions and norms.
        window: how many earlier rows attention reads, the latest ones.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    rope_theta: float = 10000.0
    eps: float = 1e-5
    window: int = 512


class NewRows(NamedTuple):
    """Rows to add to texts.

    Attributes:
        texts: B of them, all different.
        sizes: rows of each.
        after: R tokens, text by text, each the one after its row.
        features: [R, F] of these rows.
    """

    texts: Sequence[int]
    sizes: Sequence[int]
    after: Sequence[int]
    features: Tensor


class TreeLimits(NamedTuple):
    """What trees may hold.

    Attributes:
        nodes: [B], the most of each tree; 0 = none.
        width: nodes of a depth that get children, and children of each; 1 gives chains.
        depth: of the deepest node.
        min_scores: [B]; nodes less likely than this, with all before them, are left out; 0..1.
    """

    nodes: Sequence[int]
    width: int
    depth: int
    min_scores: Sequence[float]


class DraftKernels:
    """Runs a head; `fastslow.draft.head.runner.HeadRunner` describes the methods.

    Activations are int8 with a scale per 32, keys and values bfloat16. A row's bits depend neither on
    other rows nor on the number of threads, torch's.

    Args:
        shape: of the layer.
        weights: matrices "fuse" [H, F], "entry" [H, 2H], "qkv", "out", "gate_up", "down"; vectors [H]
            "embedding_norm", "hidden_norm", "attention_norm", "mlp_norm", "norm".
        head: [V, H], of which the rows `ids` are taken.
        ids: int64 [D], the tokens of the head's rows.
        embedding: [V, H], float32 or bfloat16; not copied. A file's rows are read as they are needed.
        form: of the matrices. Between two drafts the target's weights pass through the caches, so
            the bytes of a head are most of its time: int4 took three quarters of int8's.

    Raises:
        MemoryError: there is none left; every method may raise it.
    """

    def __init__(
        self,
        shape: DraftShape,
        weights: Mapping[str, Tensor],
        head: Tensor | RowFile,
        ids: Tensor,
        embedding: Tensor | RowFile,
        form: Format = Format.INT4,
    ) -> None:
        self.shape = shape
        self.form = form
        self.features = weights["fuse"].shape[1]
        self._kernels = library.kernels()
        if isinstance(embedding, Tensor):
            known = embedding.dtype in (torch.float32, torch.bfloat16)
            embedding = (embedding if known else embedding.float()).contiguous()
        self._ids: Ints = ids.numpy().astype(np.int64)
        self._memory: list[NDArray[np.generic]] = [self._ids]  # what the kernels point to
        inner = shape.heads * shape.head_dim
        heads = packed.heads_order(shape.heads + 2 * shape.kv_heads, shape.head_dim)
        plain, head_rows = packed.plain_order(shape.hidden), packed.plain_order(len(self._ids))
        head_rows[head_rows >= 0] = self._ids
        gate_up = packed.gate_up_order(shape.neurons)

        def pack(name: str, rows: Ints, inputs: int) -> library.CMatrix:
            return self._pack(weights[name], rows, inputs)

        layer = library.CLayer(
            attention_norm=self._vector(weights["attention_norm"]),
            mlp_norm=self._vector(weights["mlp_norm"]),
            qkv=pack("qkv", heads, shape.hidden),
            out=pack("out", plain, inner),
            gate_up=pack("gate_up", gate_up, shape.hidden),
            down=pack("down", plain, shape.neurons),
        )
        whole = library.CShape(
            layers=1,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            neurons=shape.neurons,
            vocabulary=len(self._ids),
            eps=shape.eps,
            embedding_format=float_format(embedding.dtype),
            **_place(embedding),
            norm=self._vector(weights["norm"]),
            head=self._pack(head, head_rows, shape.hidden),
            fuse=pack("fuse", plain, self.features),
            entry=pack("entry", plain, 2 * shape.hidden),
            embedding_norm=self._vector(weights["embedding_norm"]),
            hidden_norm=self._vector(weights["hidden_norm"]),
        )
        made = self._kernels.fs_draft_new(
            ctypes.byref(whole),
            ctypes.byref(layer),
            self._ids.ctypes.data,
            shape.window,
            shape.rope_theta,
        )
        if not made:
            raise MemoryError("there is no memory left for the draft head's kernels")
        self._handle = made
        self._end = weakref.finalize(self, _delete, self._kernels, made, self._memory, embedding)

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
        numbers = np.array([*rows.texts, *rows.sizes], dtype=np.int64)
        tokens = np.array(rows.after, dtype=np.int64)
        values = rows.features.float().contiguous()
        count = len(rows.texts)
        args = library.DraftArgs(
            threads=torch.get_num_threads(),
            requests=count,
            contexts=numbers.ctypes.data,
            fresh=numbers.ctypes.data + 8 * count,
            after=tokens.ctypes.data,
            features=values.data_ptr(),
        )
        self._check(self._kernels.fs_draft_read(self._handle, ctypes.byref(args)))

    def extend_vocab(self, text: int, ids: Sequence[int], rows: Tensor) -> None:
        """Add tokens that only this text may get, with their rows [n, H] of the target's head."""
        some = np.array(ids, dtype=np.int64)
        values = np.ascontiguousarray(rows.float().numpy())
        self._check(
            self._kernels.fs_draft_words(
                self._handle, text, some.ctypes.data, values.ctypes.data, len(some)
            )
        )

    def grow(self, rows: NewRows, limits: TreeLimits) -> list[Tree]:
        if not rows.texts:
            return []
        count, most = len(rows.texts), max(*limits.nodes, 1)
        numbers = np.array([*rows.texts, *rows.sizes, *limits.nodes], dtype=np.int64)
        tokens = np.array(rows.after, dtype=np.int64)
        values = rows.features.float().contiguous()
        found = np.empty(count * (1 + 2 * most), dtype=np.int64)
        scores: Floats = np.empty(count * most, dtype=np.float32)
        bounds: Floats = np.array(limits.min_scores, dtype=np.float32)
        start, into = numbers.ctypes.data, found.ctypes.data
        args = library.DraftArgs(
            threads=torch.get_num_threads(),
            requests=count,
            width=limits.width,
            depth=limits.depth,
            most=most,
            least=bounds.ctypes.data,
            contexts=start,
            fresh=start + 8 * count,
            nodes=start + 16 * count,
            after=tokens.ctypes.data,
            features=values.data_ptr(),
            counts=into,
            tokens=into + 8 * count,
            parents=into + 8 * count * (1 + most),
            scores=scores.ctypes.data,
        )
        self._check(self._kernels.fs_draft_grow(self._handle, ctypes.byref(args)))
        places, likely = found.tolist(), scores.tolist()
        trees = []
        for b, size in enumerate(places[:count]):
            first = count + b * most
            second = first + count * most
            trees.append(
                Tree(
                    places[first : first + size],
                    places[second : second + size],
                    scores=likely[b * most : b * most + size],
                )
            )
        return trees

    def advance(self, contexts: Sequence[int], tokens: Sequence[int]) -> None:
        """One more token of each text's chain, which begins anew after `grow`."""
        both = np.array([*contexts, *tokens], dtype=np.int64)
        start, count = both.ctypes.data, len(contexts)
        threads = torch.get_num_threads()
        self._check(
            self._kernels.fs_draft_advance(self._handle, start, start + 8 * count, count, threads)
        )

    def logits(self, text: int) -> Floats:
        size = ctypes.c_int64()
        at = self._kernels.fs_draft_logits(self._handle, text, ctypes.byref(size))
        pointer = ctypes.cast(at, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (size.value,))

    def _opened(self, text: int) -> int:
        if text < 0:
            raise MemoryError("there is no memory left for a draft")
        return text

    def _check(self, failed: int) -> None:
        if failed == library.UNREADABLE:
            raise OSError("the target's embedding cannot be read from its file")
        if failed:
            raise MemoryError("drafting found no memory, or no threads")

    def _pack(self, matrix: Tensor | RowFile, rows: Ints, inputs: int) -> library.CMatrix:
        tile = int(self._kernels.fs_tile_bytes(self.form, inputs))
        tiles = self._room(len(rows) // library.TILE * tile)
        packed.pack_rows_at(tiles, self.form, inputs, rows, matrix.__getitem__)
        return library.CMatrix(tiles, None, self.form, inputs, len(rows))

    def _vector(self, values: Tensor) -> int:
        whole = values.float().contiguous()  # has a name, so it lives until it is copied
        at = self._room(4 * len(whole))
        ctypes.memmove(at, whole.data_ptr(), 4 * len(whole))
        return at

    def _room(self, size: int) -> int:
        """Memory that starts on a cache line, kept as long as the head; its address."""
        memory = np.zeros(size + PADDING, dtype=np.uint8)
        self._memory.append(memory)
        return -(-memory.ctypes.data // 64) * 64


def _place(embedding: Tensor | RowFile) -> dict[str, int]:
    """Where the embedding lies: fields of `library.CShape`."""
    if isinstance(embedding, Tensor):
        return {"embedding": embedding.data_ptr()}
    return {"embedding_at": embedding.at, "embedding_file": embedding.file.number}


def _delete(kernels: ctypes.CDLL, handle: int, *held: object) -> None:
    """The kernels go before what they point to."""
    kernels.fs_draft_delete(handle)

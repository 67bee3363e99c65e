"""A draft head on the kernels: one decoder layer with an entry of its own, and trees in one call."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        hidden, heads, kv_heads, head_dim, neurons: as in a decoder layer.
        rope_theta, eps: of rotary positions and norms.
        window: rows that attention sees.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    rope_theta: float
    eps: float
    window: int


class DraftKernels:
    """Runs a head; its requests are numbers that `open` gives.

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
        self._kept: list[NDArray[np.generic]] = [self._ids]  # what the kernels point to
        inner = shape.heads * shape.head_dim
        heads = packed.heads_order(shape.heads + 2 * shape.kv_heads, shape.head_dim)
        plain, words = packed.plain_order(shape.hidden), packed.plain_order(len(self._ids))
        words[words >= 0] = self._ids
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
            head=self._pack(head, words, shape.hidden),
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
        self._end = weakref.finalize(self, _delete, self._kernels, made, self._kept, embedding)

    def open(self, position: int) -> int:
        """A new text whose next row stands at a position; its number."""
        return self._number(self._kernels.fs_draft_open(self._handle, position))

    def fork(self, context: int, drop: int) -> int:
        """A text that begins as another one did, without its last `drop` rows; its number. It has no
        words of its own."""
        return self._number(self._kernels.fs_draft_fork(self._handle, context, drop))

    def close(self, context: int) -> None:
        """Forget a text."""
        self._check(self._kernels.fs_draft_close(self._handle, context))

    def skip(self, context: int, position: int) -> None:
        """A text's next row stands there: rows between were never shown."""
        self._check(self._kernels.fs_draft_skip(self._handle, context, position))

    def read(
        self, contexts: Sequence[int], sizes: Sequence[int], after: Sequence[int], features: Tensor
    ) -> None:
        """Take rows in that nothing is drafted from: it takes a third of what `grow` does for a row.
        A text has no tree and no chain until `grow` takes in a row behind them.

        Args:
            contexts: B texts, each once.
            sizes: rows of each.
            after: R tokens, text by text, each the one after its row.
            features: [R, F] of these rows.
        """
        numbers = np.array([*contexts, *sizes], dtype=np.int64)
        tokens = np.array(after, dtype=np.int64)
        values = features.float().contiguous()
        args = library.DraftArgs(
            threads=torch.get_num_threads(),
            requests=len(contexts),
            contexts=numbers.ctypes.data,
            fresh=numbers.ctypes.data + 8 * len(contexts),
            after=tokens.ctypes.data,
            features=values.data_ptr(),
        )
        self._check(self._kernels.fs_draft_read(self._handle, ctypes.byref(args)))

    def add_words(self, context: int, ids: Sequence[int], rows: Tensor) -> None:
        """Tokens that this text alone can be drafted, with their rows [n, H] of the target's head."""
        some = np.array(ids, dtype=np.int64)
        values = np.ascontiguousarray(rows.float().numpy())
        self._check(
            self._kernels.fs_draft_words(
                self._handle, context, some.ctypes.data, values.ctypes.data, len(some)
            )
        )

    def grow(
        self,
        contexts: Sequence[int],
        fresh: Sequence[int],
        after: Sequence[int],
        features: Tensor,
        nodes: Sequence[int],
        width: int,
        depth: int,
        least: Sequence[float],
    ) -> list[Tree]:
        """Take rows in, and give each text's tree.

        Args:
            contexts: B texts, each once.
            fresh: rows of each to take in first; a text that never had one gets no tree.
            after: R tokens, text by text, each the one after its row.
            features: [R, F] of these rows.
            nodes: most nodes of each tree; 0 = none.
            width: nodes of a depth that go on, and children of each.
            depth: of the deepest node.
            least: no node of a tree is less likely than this with all before it, 0..1.
        """
        count, most = len(contexts), max(*nodes, 1)
        numbers = np.array([*contexts, *fresh, *nodes], dtype=np.int64)
        tokens = np.array(after, dtype=np.int64)
        values = features.float().contiguous()
        found = np.empty(count * (1 + 2 * most), dtype=np.int64)
        scores: Floats = np.empty(count * most, dtype=np.float32)
        bounds: Floats = np.array(least, dtype=np.float32)
        start, into = numbers.ctypes.data, found.ctypes.data
        args = library.DraftArgs(
            threads=torch.get_num_threads(),
            requests=count,
            width=width,
            depth=depth,
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
        places, given = found.tolist(), scores.tolist()
        trees = []
        for b, size in enumerate(places[:count]):
            first = count + b * most
            second = first + count * most
            trees.append(
                Tree(
                    places[first : first + size],
                    places[second : second + size],
                    scores=given[b * most : b * most + size],
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

    def logits(self, context: int) -> Floats:
        """f32 [D + E] after the last token of a text's chain: the head's tokens, then its own ones.
        Valid until the next call."""
        size = ctypes.c_int64()
        at = self._kernels.fs_draft_logits(self._handle, context, ctypes.byref(size))
        pointer = ctypes.cast(at, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (size.value,))

    def _number(self, number: int) -> int:
        if number < 0:
            raise MemoryError("there is no memory left for a draft")
        return number

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
        self._kept.append(memory)
        return -(-memory.ctypes.data // 64) * 64


def _place(embedding: Tensor | RowFile) -> dict[str, int]:
    """The fields of `library.Shape` that say where it lies."""
    if isinstance(embedding, Tensor):
        return {"embedding": embedding.data_ptr()}
    return {"embedding_at": embedding.at, "embedding_file": embedding.file.number}


def _delete(kernels: ctypes.CDLL, handle: int, *kept: object) -> None:
    """The kernels go before what they point to."""
    kernels.fs_draft_delete(handle)

"""What computes on an NPU that has only memory (`npu_cann.py`): tensors on `npu:0` are read where they lie.

Every operator on such tensors runs on the CPU, over the same bytes. So device and host are told apart by
torch-npu's own dispatcher, and its own graphs record: with the calls that replay in a graph's place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, Self

import npu_kernels
import numpy as np
import torch
import torch_npu
from npu_sim import WAITING, HostSync
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
NATIVE = {  # torch-npu's own, for they only ask for memory
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default),
    *(aten.new_empty.default, aten.detach.default, aten.record_stream.default),
    aten.view.dtype,
}
graphs = torch_npu.npu.graphs


def on_npu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "npu"


def alias(tensor: Tensor) -> Tensor:
    """The same bytes as a CPU tensor."""
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    size = (last + 1) * tensor.element_size()
    memory = (ctypes.c_uint8 * size).from_address(tensor.data_ptr())
    flat = torch.from_numpy(np.ctypeslib.as_array(memory)).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride())


def placed(tensor: Tensor) -> Tensor:
    """A copy on the NPU."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="npu:0")
    alias(made).copy_(tensor)
    return made


class Call:
    """An operator, run anew on the same memory."""

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.out: list[Tensor] = []

    def run(self) -> Any:
        def moved(value: Any) -> Any:
            if on_npu(value):
                return alias(value)
            npu = isinstance(value, torch.device) and value.type == "npu"
            return torch.device("cpu") if npu else value

        return self.func(*tree_map(moved, self.args), **tree_map(moved, self.kwargs))

    def again(self) -> None:
        fresh = [x for x in tree_leaves(self.run()) if isinstance(x, Tensor)]
        for kept, found in zip(self.out, fresh, strict=bool(self.out)):
            alias(kept).copy_(found)


class Memory(TorchDispatchMode):
    """The one that is entered computes; see the module.

    Attributes:
        calls: what is being recorded; None outside of a recording.
        groups: calls by the handle of the task group that they were recorded in.
    """

    now: Memory

    def __enter__(self) -> Self:
        Memory.now = self
        self.calls: list[Call] | None = None
        self.groups: dict[Any, list[Call]] = {}
        self.group: list[Call] | None = None
        self.renewed: list[Call] | None = None
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = tree_leaves((args, kwargs))
        wanted = kwargs.get("device")
        if (
            func.overloadpacket is aten.to
        ):  # where nothing is differentiated it comes as it is called
            devices = [x.device if isinstance(x, Tensor) else x for x in flat[1:]]
            wanted = next((x for x in devices if isinstance(x, torch.device)), args[0].device)
        kind = None if wanted is None else torch.device(wanted).type
        if not any(map(on_npu, flat)) and kind != "npu":
            return func(*args, **kwargs)
        if func in NATIVE:
            return func(*args, **kwargs)
        if func.is_view and on_npu(args[0]) and kind in (None, "npu"):
            seen = self._viewed(args[0], Call(func, args, kwargs).run())
            if seen is not None:
                return seen
        if self.calls is not None:
            self._check(func, flat, kind)
        if self.renewed is not None:  # in the place of the recorded call, which runs at the replay
            self.renewed[0].args, self.renewed[0].kwargs = args, kwargs
            return kwargs.get("out")
        call = Call(func, args, kwargs)
        out = call.run()
        written = self._written(func, args, kwargs)
        result = written if func._schema.returns else None
        if written is None:
            host = kind == "cpu" or func._schema.name.partition("::")[2] in WAITING
            # a copy: on the CPU a tensor that is there already would come back itself
            result = out.clone() if kind == "cpu" else out
            result = result if host else tree_map(self._placed, out)
            call.out = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if self.calls is not None:
            self.calls.append(call)
            if self.group is not None:
                self.group.append(call)
        return result

    def _viewed(self, base: Tensor, out: Any) -> Any:
        """The parts of `base` that a view on the CPU gave; None if they were copied."""
        first, last = base.untyped_storage().data_ptr(), base.untyped_storage().nbytes()
        if not all(0 <= x.data_ptr() - first < last or not x.numel() for x in tree_leaves(out)):
            return None

        def part(x: Tensor) -> Tensor:
            start = (x.data_ptr() - first) // x.element_size() if x.numel() else 0
            placed: Tensor = aten.as_strided.default(base, x.shape, x.stride(), start)
            return placed

        return tree_map(part, out)

    def _placed(self, value: Any) -> Any:
        return placed(value) if isinstance(value, Tensor) else value

    def _check(self, func: Any, flat: list[Any], kind: str | None) -> None:
        name = func._schema.name.partition("::")[2]
        masks = any(on_npu(x) and x.dtype == torch.bool for x in flat[1:])
        waits = name in WAITING or (name.startswith("index") and name != "index_select" and masks)
        host = any(isinstance(x, Tensor) and not on_npu(x) and x.dim() for x in flat)
        if waits or host or kind == "cpu":
            raise HostSync(f"{func} while a graph is recorded")

    def _written(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operator that writes to its arguments gives: those; None for any other."""
        given = {a.name: v for a, v in zip(func._schema.arguments, args)} | kwargs
        names = [
            a.name
            for a in func._schema.arguments
            if a.alias_info is not None and a.alias_info.is_write
        ]
        if "out" in given and isinstance(given["out"], list | tuple):
            names = ["out"]
        written = [given[n] for n in names if n in given]
        if not written:
            return None
        return written[0] if len(written) == 1 else tuple(written)


def _begin(self: Any, pool: Any = None, capture_error_mode: str = "global") -> None:
    assert Memory.now.calls is None
    Memory.now.calls = self.recorded = []


def _end(self: Any) -> None:
    Memory.now.calls = None


def _replay(self: Any) -> None:
    for call in self.recorded:
        call.again()


def _group_begin(stream: Any) -> None:
    Memory.now.group = []


def _group_end(stream: Any) -> Any:
    handle = object()
    assert Memory.now.group
    Memory.now.groups[handle] = Memory.now.group
    Memory.now.group = None
    return handle


def _update_begin(stream: Any, handle: Any) -> None:
    Memory.now.renewed = Memory.now.groups[handle]


def _update_end(stream: Any) -> None:
    Memory.now.renewed = None


def _fused_out(*args: Any, workspace: Any = None, out: list[Tensor], **kwargs: Any) -> Any:
    found = npu_kernels.npu_fused_infer_attention_score(*args, **kwargs)
    for place, value in zip(out, found):
        place.copy_(value.view(place.shape) if place.numel() == value.numel() else place)
    return tuple(out)


def _workspace(*args: Any, **kwargs: Any) -> Tensor:
    return torch.empty(16, dtype=torch.uint8)


def _output(query: Tensor, value: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    rows = len(query) if kwargs.get("softmax_lse_flag") else 0
    return torch.empty_like(query), torch.empty(rows, query.shape[1], 1)


def install() -> None:
    """The CPU kernels under the wheel's own operators, and graphs that replay calls."""
    npu = torch.library.Library("npu", "IMPL", "CPU")
    own: dict[str, Callable[..., Any]] = {
        "npu_fused_infer_attention_score.out": _fused_out,
        "_npu_fused_infer_attention_score_get_max_workspace": _workspace,
        "_npu_fused_infer_attention_score_infer_output": _output,
    }
    for schema in npu_kernels.SCHEMAS:
        space, _, rest = schema.partition("::")
        name = rest.partition("(")[0]
        if space == "npu":
            own[name] = getattr(npu_kernels, name)
    for name, kernel in own.items():
        npu.impl(name, kernel, "CPU")
    _kept.append(npu)
    kind = graphs.NPUGraph
    kind.capture_begin, kind.capture_end, kind.replay = _begin, _end, _replay
    graphs.graph_task_group_begin, graphs.graph_task_group_end = _group_begin, _group_end
    graphs.graph_task_update_begin, graphs.graph_task_update_end = _update_begin, _update_end


@contextmanager
def computing() -> Any:
    with Memory() as memory:  # type: ignore[no-untyped-call]
        yield memory


_kept: list[torch.library.Library] = []

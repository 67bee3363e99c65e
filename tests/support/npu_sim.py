"""A torch_npu module without an NPU: its operators run on the CPU, its graphs record and replay.

An NPU tensor is a CPU tensor: a mix-up of the two in one call is not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import npu_kernels
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FUSED = "npu_fused_infer_attention_score"
WAITING = {  # operators whose result the host must wait for
    *("_local_scalar_dense", "item", "nonzero", "equal", "masked_select", "is_nonzero"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}
HOST = {"cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__", "__index__"}
HOST |= {"tensor", "as_tensor", "from_numpy", "__array__"}


class HostSync(RuntimeError):
    """The host waited for the device, or the device for the host, while a graph was recorded."""


class _NoHost(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in HOST:
            raise HostSync(f"{func.__name__} while a graph is recorded")
        return func(*args, **(kwargs or {}))


class _Recording(TorchDispatchMode):
    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        masks = [x for x in _tensors(args[1:]) if x.dtype == torch.bool]
        if name in WAITING or (name in ("index", "index_put", "index_put_") and masks):
            raise HostSync(f"{func} while a graph is recorded")
        call = _Call(func, args, dict(kwargs or {}))
        self._calls.append(call)
        return call.first()


class _Call:
    """A call of an operator, with the tensors it reads and writes: the same memory each time."""

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self._out: list[Tensor] = []

    def first(self) -> Any:
        out = self.func(*self.args, **self.kwargs)
        given = {x.untyped_storage().data_ptr() for x in _tensors((self.args, self.kwargs))}
        self._out = [x if x.untyped_storage().data_ptr() not in given else x.new_empty(0) for x in _tensors(out)]
        return out

    def again(self) -> None:
        out = self.func(*self.args, **self.kwargs)
        for kept, fresh in zip(self._out, _tensors(out), strict=True):
            if kept.numel() and kept.shape == fresh.shape:
                kept.copy_(fresh)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


class NPUGraph:
    """Records calls; `update` renews host integers of the fused attention."""

    made = 0

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.auto_dispatch_capture = False
        NPUGraph.made += 1

    def update(self, cpu_update_input: list[dict[str, Any]]) -> None:
        if not self.auto_dispatch_capture:
            raise RuntimeError("the graph was not recorded with auto_dispatch_capture=True")
        (fresh,) = cpu_update_input
        for call in self.calls:
            if call.func._schema.name == f"npu::{FUSED}":
                call.kwargs.update(fresh)

    @torch.inference_mode()
    def replay(self) -> None:
        assert self.calls, "nothing was recorded"
        for call in self.calls:
            call.again()


@contextmanager
def graph(
    npu_graph: NPUGraph,
    pool: Any = None,
    stream: Any = None,
    auto_dispatch_capture: bool = False,
    capture_error_mode: str = "global",
) -> Iterator[None]:
    npu_graph.auto_dispatch_capture = auto_dispatch_capture
    with ExitStack() as modes:
        modes.enter_context(_NoHost())
        modes.enter_context(_Recording(npu_graph.calls))
        yield


class _Stream:
    def synchronize(self) -> None:
        """Nothing runs while the host does."""


def torch_npu() -> ModuleType:
    """The module, and in it the part `npu` that is also `torch.npu`."""
    npu_kernels.define()
    module = ModuleType("torch_npu")
    module.__spec__ = ModuleSpec("torch_npu", None)  # other libraries look for it
    device = ModuleType("torch_npu.npu")
    attributes: dict[str, Callable[..., Any]] = {
        "NPUGraph": NPUGraph, "graph": graph, "graph_pool_handle": lambda: (0, 0), "current_stream": _Stream,
        "set_stream": lambda stream: None, "device": lambda device: nullcontext(),
        "Stream": lambda device: _Stream(), "is_available": lambda: True, "device_count": lambda: 1,
        "get_device_name": lambda: npu_kernels.CHIP.name,
    }  # fmt: skip
    for name, value in attributes.items():
        setattr(device, name, value)
    module.npu = device  # type: ignore[attr-defined]
    for schema in npu_kernels.SCHEMAS:
        space, _, rest = schema.partition("::")
        name = rest.partition("(")[0]
        setattr(module, name, getattr(getattr(torch.ops, space), name))
    return module


def install() -> None:
    """For the rest of the process; the real one, where it is there, stays."""
    sys.modules.setdefault("torch_npu", torch_npu())

"""From a folder to packed weights: what is kept, what is made again, what is refused."""

import errno
import gc
import os
import signal
import subprocess
import sys
import weakref
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import checkpoints
import numpy as np
import pytest
import texts
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from kernel_tools import compiled
from refusals import refused
from safetensors.torch import load_file, save_file

from fastslow import LLM
from fastslow.engine.backends.cpu import library, store
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.library import checksum
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.loader import load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.checkpoint.checkpoint import BLOCKS
from fastslow.engine.host.files import cache_folder
from fastslow.engine.host.unfinished import sweep
from fastslow.engine.model.base import Model

pytestmark = compiled
SHARED = str(cache_folder())  # which all tests share


class Joined(Thread):
    def start(self) -> None:
        super().start()
        self.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache folder, in which even small models are kept packed."""
    folder = tmp_path / "cache"
    folder.mkdir()
    library.kernels()  # from the cache that all tests share
    monkeypatch.setenv("FASTSLOW_CACHE", str(folder))
    monkeypatch.setattr(store, "SMALL", 0)
    monkeypatch.setattr(store, "Thread", Joined)
    return folder / "packed"


def answers(model: Model) -> torch.Tensor:
    return texts.logits(model, texts.tokens_of(20))


def edit(path: Path, at: int) -> None:
    """Change a byte of a file; its size and time stay."""
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("settled", [0, store.SETTLED])
def test_an_edit_is_noticed_though_size_and_time_are_as_before(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: int
) -> None:
    monkeypatch.setattr(store, "SETTLED", settled)
    folder = checkpoints.write_dense(tmp_path / "model")
    first = answers(load_model(folder, "float32"))
    (kept,) = cache.iterdir()
    edit(folder / "model.safetensors", -1)
    second = answers(load_model(folder, "float32"))
    assert not torch.equal(first, second) and not kept.exists()
    monkeypatch.setattr(store, "SMALL", 1 << 30)  # from the checkpoint itself
    assert torch.equal(answers(load_model(folder, "float32")), second)


def test_a_checkpoint_is_read_at_the_first_start_only(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its digest is known, also where only its time is another one; but not before its times are
    so old that another edit would change them."""
    read = list[int]()

    def counted(data: Any, before: Any = None) -> Any:
        read.append(data.size)
        return checksum(data, before)

    monkeypatch.setattr(store, "checksum", counted)
    folder = checkpoints.write_dense(tmp_path / "model")
    source = sum(path.stat().st_size for path in folder.iterdir())
    load_model(folder, "bfloat16")
    (kept,) = cache.iterdir()
    packed = kept.stat().st_size - store.SEAL
    read.clear()
    load_model(folder, "bfloat16")
    assert sum(read) == packed + source  # written in this moment
    monkeypatch.setattr(store, "SETTLED", 0)
    load_model(folder, "bfloat16")
    read.clear()
    load_model(folder, "bfloat16")
    assert sum(read) == packed
    made = kept.stat().st_ino
    os.utime(folder / "model.safetensors", (1, 1))
    load_model(folder, "bfloat16")
    assert kept.stat().st_ino == made
    load_model(folder, quantization="int8")
    assert len(list(cache.iterdir())) == 2


KILLED = """
import os, sys, threading
from fastslow.engine.backends.cpu import library, store
from fastslow.engine.backends.loader import load_model

library.kernels()  # from the cache that all tests share
os.environ["FASTSLOW_CACHE"], store.SMALL, loaded = sys.argv[2], 0, threading.Event()
store._sum = lambda *given: os._exit(9 if loaded.wait(60) else 1)  # all is written but the sum
load_model(sys.argv[1], "bfloat16")
loaded.set()
"""


@pytest.mark.skipif(not store.HUGE.is_file(), reason="there are no huge pages")
def test_a_model_runs_before_its_file_is_whole(cache: Path, tmp_path: Path) -> None:
    folder = checkpoints.write_dense(tmp_path / "model")
    command = [sys.executable, "-c", KILLED, str(folder), str(cache.parent)]
    assert subprocess.call(command, env=os.environ | {"FASTSLOW_CACHE": SHARED}) == 9
    assert list(cache.iterdir()) and not list(cache.glob("*" + store.SUFFIX))
    sweep(cache.parent)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("huge", [True, False])
@pytest.mark.parametrize("place", ["hot", "cold", "sum", "longer"])
def test_a_damaged_packing_is_made_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str], huge: bool, place: str
) -> None:
    if not huge:
        monkeypatch.setattr(store, "HUGE", tmp_path / "nothing")
    monkeypatch.setattr(store, "PIECE", 1 << 14)  # so that there are many
    folder = checkpoints.write_dense(tmp_path / "model")
    model = load_model(folder, "bfloat16")
    assert isinstance(model, CpuDecoder)
    first = answers(model)
    (kept,) = cache.iterdir()
    if place == "longer":
        kept.write_bytes(kept.read_bytes() + bytes(64))
    else:
        hot, end = model._arena.hot, model._arena.nbytes
        edit(kept, {"hot": hot // 2, "cold": (hot + end) // 2, "sum": end}[place])
    logged.clear()
    assert torch.equal(answers(load_model(folder, "bfloat16")), first)
    assert len([line for line in logged if "are damaged: packed anew" in line]) == 1
    logged.clear()
    assert torch.equal(answers(load_model(folder, "bfloat16")), first) and not logged


def test_a_checkpoint_that_changes_while_it_is_packed_is_not_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    folder = checkpoints.write_dense(tmp_path / "model")
    paths = iter([cache / "before-1.packed", cache / "after-2.packed"])
    monkeypatch.setattr(store, "packed_path", lambda *_: next(paths))
    answers(load_model(folder, "bfloat16"))
    assert not list(cache.iterdir())
    assert [line for line in logged if "was changed while it was packed" in line]


@pytest.mark.skipif(not store.HUGE.is_file(), reason="there are no huge pages")
def test_an_embedding_that_cannot_be_read_is_an_error(cache: Path, tmp_path: Path) -> None:
    load_model(folder := checkpoints.write_dense(tmp_path / "model"), "bfloat16")
    model = load_model(folder, "bfloat16")  # from the file
    assert isinstance(model, CpuDecoder)
    if isinstance(model._memory.hot, np.memmap):
        pytest.skip("the system gives no huge pages")
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    os.truncate(kept, model._arena.hot)
    with pytest.raises(OSError, match="embedding cannot be read"):
        answers(model)
    kept.write_bytes(whole)
    assert answers(model).isfinite().all()


def test_auto_runs_four_bit_blocks_as_they_are(tmp_path: Path, logged: list[str]) -> None:
    """The blocks, and not the weights beside them, which are another model's."""
    folder = checkpoints.write_dense(tmp_path / "model", hidden_size=64, intermediate_size=96)
    weights = load_file(folder / "model.safetensors")
    other = checkpoints.write_dense(tmp_path / "o", seed=1, hidden_size=64, intermediate_size=96)
    layers = {k: v for k, v in load_file(other / "model.safetensors").items() if k.endswith("_proj.weight")}
    kind = GGMLQuantizationType.Q4_1
    raw = {k: quantize(v.float().numpy(), kind) for k, v in layers.items()}
    exact = {k: torch.from_numpy(dequantize(v, kind)).to(torch.float32) for k, v in raw.items()}
    save_file({k: torch.from_numpy(v.copy()) for k, v in raw.items()}, folder / BLOCKS)
    assert folder / BLOCKS in store._sources(folder), "an edit of it is noticed"
    model = load_model(folder, quantization="auto")
    assert isinstance(model, CpuDecoder) and model.formats.name == "int4"
    assert [line for line in logged if "4-bit" in line]
    beside = answers(load_model(folder, "float32"))
    save_file({**{k: v.float() for k, v in weights.items()}, **exact}, folder / "model.safetensors")
    close = answers(load_model(folder, "float32"))
    assert (answers(model) - close).std() < 0.1 * close.std()
    assert (answers(model) - beside).std() > 0.5 * close.std()
    asked = load_model(folder, "float32", quantization="auto")
    assert isinstance(asked, CpuDecoder) and asked.formats.name == "float32"


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.write_dense(tmp_path)
    refused("quantization 'int3' is not one of auto, none, int8", load_model, folder, quantization="int3")
    monkeypatch.setattr(library, "available", lambda: False)
    refused("quantization 'int8' needs the CPU kernels", load_model, folder, quantization="int8")
    assert isinstance(load_model(folder, "bfloat16"), Decoder)


def test_switched_off_says_so_once(monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    monkeypatch.setenv("FASTSLOW_KERNELS", "off")
    library.available.cache_clear()
    try:
        assert not library.available() and not library.available()
    finally:
        library.available.cache_clear()
    assert len([line for line in logged if "FASTSLOW_KERNELS=off" in line]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_threads_of_its_own(tmp_path: Path) -> None:
    model = load_model(checkpoints.write_moge(tmp_path), "bfloat16")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(5):
            answers(model)
        first = answers(model)
        child = os.fork()
        if not child:
            signal.alarm(60)  # a child that hangs ends by this
            os._exit(not all(torch.equal(answers(model), first) for _ in range(6)))
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


def test_a_full_disk_packs_into_memory(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert answers(load_model(checkpoints.write_dense(tmp_path / "model"), "bfloat16")).isfinite().all()
    assert [line for line in logged if "No space left" in line] and not list(cache.iterdir())


@pytest.mark.skipif(not store.HUGE.is_file(), reason="there are no huge pages")
def test_what_is_being_written_is_packed_once_and_freed_by_close(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings, written = list[object](), Event()
    whole, summed = Arena.write, store._sum

    def packed(arena: Arena, into: Any, sources: Any) -> None:
        packings.append(arena)
        whole(arena, into, sources)

    def wait(*given: Any) -> bytes:
        assert written.wait(60)
        return summed(*given)

    monkeypatch.setattr(store, "Thread", Thread)
    monkeypatch.setattr(Arena, "write", packed)
    monkeypatch.setattr(store, "_sum", wait)
    folder = checkpoints.write_dense(tmp_path / "model")
    first, second = (LLM(folder, dtype="bfloat16", kv_memory="1MiB") for _ in range(2))
    assert first.generate([1, 2]).token_ids == second.generate([1, 2]).token_ids
    assert isinstance(first.model, CpuDecoder)
    held = weakref.ref(first.model._memory.hot)
    both = ExitStack()
    both.callback(first.close)
    both.callback(second.close)
    (closing := Thread(target=both.close)).start()
    closing.join(0.2)
    assert closing.is_alive() and held() is not None and not list(cache.glob("*.packed"))
    written.set()
    closing.join()
    gc.collect()
    assert held() is None and len(list(cache.glob("*.packed"))) == 1
    with LLM(folder, dtype="bfloat16", kv_memory="1MiB"):
        assert len(packings) == 1

"""`fastslow doctor`: what this machine runs models with, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import typer

from fastslow.tools.cli.options import AsJson, expand_options

BLOCK = 256 << 20  # bytes that the bandwidth is read from: more than caches hold
TURNS = 3
REACH = 3.0  # seconds that the hub has to answer
EXTRAS = {
    "grammar": ("llguidance", "structured output and tools"),
    "serve": ("uvicorn", "`fastslow serve`"),
    "ray": ("ray", "replicas on several hosts"),
}


class MachineCheck(NamedTuple):
    """Result for one thing that was looked at."""

    what: str
    fine: bool  # False: something is slow or missing, and `said` says what to do
    said: str  # one line
    facts: dict[str, Any]  # for programs


@expand_options
def doctor(as_json: AsJson = False) -> None:
    """Look at what models run with here: kernels, memory, torch, caches, the hub, optional packages. One line for
    each; the exit code is 1 where something makes the engine slow or stops it.

    Example:
      fastslow doctor --json
    """
    from fastslow.tools.cli import screen

    findings = []
    for look in LOOKS:
        for one in look():
            findings.append(one)
            if not as_json:
                mark = "ok" if one.fine else "!!"
                screen.console().print(f"{mark}  {one.what:<13} {one.said}")
    if as_json:
        screen.write_json({one.what: {"fine": one.fine, **one.facts} for one in findings})
    if not all(one.fine for one in findings):
        raise typer.Exit(1)


def _versions() -> Iterator[MachineCheck]:
    import torch

    import fastslow

    facts = {"fastslow": fastslow.__version__, "python": platform.python_version()}
    facts["torch"] = torch.__version__
    yield MachineCheck("versions", True, ", ".join(f"{k} {v}" for k, v in facts.items()), facts)


def _processor() -> Iterator[MachineCheck]:
    import torch

    from fastslow.engine.host.machine import cores, free_memory, whole_memory
    from fastslow.engine.kv.budget import format_bytes
    from fastslow.tools.machine import processor

    facts = {"name": processor(), "cores": cores(), "threads": torch.get_num_threads()}
    said = f"{facts['name']}, {facts['cores']} cores, {facts['threads']} threads of torch"
    yield MachineCheck("processor", True, said, facts)
    free, whole = free_memory("cpu"), whole_memory("cpu")
    said = f"{format_bytes(free)} of {format_bytes(whole)} are free"
    yield MachineCheck("memory", True, said, {"free": free, "whole": whole})


def _kernels() -> Iterator[MachineCheck]:
    import numpy as np

    from fastslow.engine.backends.cpu import library
    from fastslow.engine.backends.cpu.compiled.kernel_cache import usable_levels
    from fastslow.engine.host.machine import cores

    try:
        level = library.level()
    except ValueError as error:
        yield MachineCheck("kernels", False, str(error), {"error": str(error)})
        return
    chip = usable_levels()[-1]
    facts: dict[str, Any] = {"level": level, "wheel": bool(library.prebuilt(level)), "chip": chip}
    if level == "off":
        yield MachineCheck("kernels", False, f"{library.SLOWER}: {library.VARIABLE}=off", facts)
        return
    try:
        library.kernels()
    except RuntimeError as error:
        said = f"{library.SLOWER}: {error}"
        yield MachineCheck("kernels", False, said, facts | {"error": str(error)})
        return
    source = "from the wheel" if facts["wheel"] else "compiled here"
    named = os.environ.get(library.VARIABLE)
    why = f"{library.VARIABLE}={named}" if named else "the best that is here"
    yield MachineCheck("kernels", True, f"{level}, {source} ({why}); this chip has {chip}", facts)
    block = np.ones(BLOCK, np.uint8)
    read = max(library.read_bandwidth(block, cores()) for _ in range(TURNS))
    said = f"{read:.0f} GB/s with {cores()} threads: a token reads all weights that run once"
    yield MachineCheck("bandwidth", True, said, {"gb_per_second": read, "threads": cores()})


def _devices() -> Iterator[MachineCheck]:
    import torch

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    facts: dict[str, Any] = {"cuda": names, "torch_npu": _version("torch-npu")}
    npu = facts["torch_npu"]
    said = ", ".join(names) or ("none: models run on the processor" if not npu else "no GPU")
    yield MachineCheck("accelerators", True, said + (f", torch-npu {npu}" if npu else ""), facts)


def _cache() -> Iterator[MachineCheck]:
    from fastslow.engine.host.files import cache_folder
    from fastslow.engine.kv.budget import format_bytes

    folder = cache_folder()
    there = _existing(folder)
    files = [one for one in folder.rglob("*") if one.is_file() and not one.is_symlink()]
    held, free = sum(one.stat().st_size for one in files), shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    said = f"{format_bytes(held)} in {folder}, {format_bytes(free)} of the disk are free"
    if not writable:
        said += "; it cannot be written to: point FASTSLOW_CACHE at a folder of yours"
    facts = {"folder": str(folder), "held": held, "free": free, "writable": writable}
    yield MachineCheck("cache", writable, said, facts)


def _existing(folder: Path) -> Path:
    """The folder, or what is there of its parents."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _hub() -> Iterator[MachineCheck]:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    from huggingface_hub import constants, get_token

    from fastslow.models.hub.hubs import open_hub

    try:
        hub = open_hub()
    except ValueError as error:
        yield MachineCheck("hub", False, str(error), {"error": str(error)})
        return
    facts: dict[str, Any] = {"place": hub.place, "cache": str(hub.cache), "reached": False}
    facts |= {"offline": constants.HF_HUB_OFFLINE, "token": get_token() is not None}
    why = "not asked: HF_HUB_OFFLINE is set"
    if not facts["offline"]:
        try:
            with urlopen(hub.place, timeout=REACH):
                facts["reached"], why = True, "reached"
        except HTTPError as error:
            facts["reached"], why = True, f"answers HTTP {error.code}"
        except (OSError, ValueError, HTTPException) as error:
            why = f"not reached ({getattr(error, 'reason', error)}): models that are here run"
    token = "a token" if facts["token"] else "no token (HF_TOKEN, for models that ask for one)"
    facts["writable"] = os.access(_existing(hub.cache), os.W_OK)
    said = f"{hub.place} {why}; {token}; cache {hub.cache}"
    if not facts["writable"]:
        said += "; it cannot be written to: point HF_HOME at a folder of yours"
    yield MachineCheck("hub", facts["writable"], said, facts)


def _packages() -> Iterator[MachineCheck]:
    for extra, (package, what) in EXTRAS.items():
        found = _version(package)
        missing = f"not installed: pip install 'fastslow[{extra}]' for {what}"
        yield MachineCheck(
            extra, True, f"{package} {found}" if found else missing, {"version": found}
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


LOOKS = (_versions, _processor, _kernels, _devices, _cache, _hub, _packages)

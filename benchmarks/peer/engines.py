"""The engines that can be compared, and the virtual environment of each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """An engine. `formats`: those of a run that names none; `others` may be asked for.

    `module` tells whether an interpreter has it; `build` holds variables for its installation.
    `makes_files`: its first load of a format leaves files behind that later loads only read.
    """

    adapter: str  # a module of this folder
    module: str
    formats: tuple[str, ...]
    others: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    makes_files: bool = False


# "file" is the GGUF as it is; other formats of llama.cpp and OpenVINO are rounded from it.
PEERS = {
    "fastslow": Peer(
        "ours",
        "fastslow",
        ("bfloat16", "int8", "int4"),
        ("float32", "float16", "auto"),
        makes_files=True,
    ),
    "llama.cpp": Peer(
        "llama",
        "llama_cpp",
        ("file", "q8_0", "bf16", "f16"),
        requirements=("llama-cpp-python==0.3.36",),
        # Many minutes. Native: the instructions of this very processor.
        build={"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
        makes_files=True,
    ),
    "openvino": Peer(
        "vino",
        "openvino_genai",
        ("file",),
        ("q8_0", "f16"),
        requirements=("openvino-genai==2026.4.1.0", "numpy"),
    ),
    "transformers": Peer(
        "hf",
        "transformers",
        ("bfloat16",),
        ("float32",),
        requirements=("transformers==5.24.0", "torch"),
    ),
}


def read_names(wish: str) -> list[tuple[str, str]]:
    """Engines and formats of a text such as "fastslow,llama.cpp:file,openvino".

    Raises:
        ValueError: an unknown engine or format.
    """
    found = []
    for part in wish.split(","):
        name, _, format = part.strip().partition(":")
        if name not in PEERS:
            raise ValueError(f"engine {name!r} is unknown; known: {', '.join(PEERS)}")
        known = PEERS[name].formats + PEERS[name].others
        if format and format not in known:
            raise ValueError(f"{name} has no format {format!r}; known: {', '.join(known)}")
        found += [(name, f) for f in ((format,) if format else PEERS[name].formats)]
    return found


def python_of(name: str, folder: Path) -> Path | None:
    """The interpreter that has an engine: its own environment's, else this one; None = neither."""
    own = folder / name / "bin" / "python"
    if name != "fastslow" and own.exists():
        return own
    return Path(sys.executable) if importlib.util.find_spec(PEERS[name].module) else None


def set_up(name: str, folder: Path) -> None:
    """Make an engine's virtual environment and install it there.

    Raises:
        subprocess.CalledProcessError: the installation failed; it has said why.
    """
    place = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run(
        [str(place / "bin" / "python"), "-m", "pip", "install", *PEERS[name].requirements],
        check=True,
        env={**os.environ, **PEERS[name].build},
    )

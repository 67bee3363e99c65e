"""The compiled kernels in the user's cache: made for this chip, once, and run only if nobody else could write them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import stat
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock, Thread

from loguru import logger

from fastslow.engine.backends.cpu.compiled.compiler import (
    FLAGS,
    NATIVE,
    compile_library,
    find_compiler,
    takes,
)
from fastslow.engine.backends.cpu.compiled.levels import (
    ADDED,
    LEVELS,
    amx_permitted,
    chip_flags,
    lacking,
    level_flags,
)
from fastslow.engine.host.files import cache_folder
from fastslow.engine.host.unfinished import unfinished

SOURCES = Path(__file__).parents[1] / "kernels"
PREBUILT = Path(__file__).with_name("prebuilt")  # a library for each level, which a wheel brings
VARIABLE = "FASTSLOW_KERNELS"
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZE += ["-fno-sanitize=vptr"]  # types are not seen across the libraries of one level
OWN = "point FASTSLOW_CACHE at a folder of your own"
# Kernels that few models need: each part is a library of its own, of the sources whose names begin so.
FILE, KV = PARTS = "-file", "-kv"
SEAL = hashlib.sha256().digest_size  # bytes of a digest that follow the library in its file
OWN_FILES = Path("/proc/self/fd")
_building, _begun = (
    Lock(),
    list[str](),
)  # _begun: not empty where kernels were asked for in this process
SAFE = {
    name: getattr(os, name, 0)
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "O_BINARY")
}


def level() -> str:
    """Return the level that runs: what FASTSLOW_KERNELS names (native, too, or one with +sanitize, or off), else the
    best of the wheel's that this chip has, else native. ValueError: no level, or above the chip."""
    wanted = os.environ.get(VARIABLE) or "auto"
    base = wanted.removesuffix("+sanitize")
    if wanted == "auto":
        return next((name for name in reversed(usable_levels()) if prebuilt(name)), "native")
    if wanted != "off" and base not in ("native", *LEVELS):
        known = ", ".join(["auto", "native", *LEVELS, "off"])
        raise ValueError(f"{VARIABLE}={wanted!r} is not one of {known}")
    if base in LEVELS and chip_flags() and (without := lacking(base)):
        raise ValueError(
            f"{VARIABLE}={wanted} is above this chip, which has no {', '.join(without)}"
        )
    if base == "amx" and not _tiles():
        raise ValueError(
            f"{VARIABLE}={wanted} is refused by Linux to this process: vnni is below it"
        )
    return wanted


def usable_levels() -> list[str]:
    """The levels that this chip has and Linux lets this process use, from plain on."""
    found = [name for name in LEVELS if not lacking(name)]
    return found if found[-1] != "amx" or _tiles() else found[:-1]


def kernels_identity() -> str:
    """Tells apart kernels that may take other times: the level that runs, the sources, the chip. ValueError: `level`."""
    return f"{level()}-{_key([_chip()])}"


def prebuilt(level: str) -> Path | None:
    """The library that a wheel brought for a level."""
    path = PREBUILT / f"{level}.so"
    return path if path.is_file() else None


@cache
def _tiles() -> bool:
    """Tell whether this process may use the chip's matrix tiles; one line in the log if not."""
    if not amx_permitted():
        logger.warning("Linux refuses matrix tiles (AMX) to this process: kernels without them run")
    return amx_permitted()


def prepare(device: object) -> None:
    """Begin to compile in the background where a model on a device will need it: who loads kernels waits for that.
    The end of the process ends it, and an error is told by who loads."""

    def compile_them() -> None:
        with suppress(RuntimeError, ValueError, OSError):
            if (name := level()) != "off" and prebuilt(name) is None:
                build(name)

    if str(device) in ("auto", "cpu") and not _begun:
        _begun.append(str(device))
        cache_folder()  # not in two threads at once: it may have to make one
        with suppress(RuntimeError):  # no more threads here
            Thread(target=compile_them, name="fastslow-compile", daemon=True).start()


def load(level: str, part: str = "") -> ctypes.CDLL:
    """The library for a level: the wheel's, else compiled on first use (seconds), or RuntimeError: what to do. part:
    one of PARTS, or "": all else. A wheel's library has every part.

    A compiled one is loaded by the descriptor that was looked at, so nothing can take its place in between.
    """
    _begun.append(level)
    if path := prebuilt(level):
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            logger.warning("the wheel's kernels do not load here, they are compiled: {}", error)
    for last in (False, True):
        path = build(level, part)
        try:
            # it stays open: the linker takes two libraries of one name for the same
            name = OWN_FILES / str(_open(path))
            return ctypes.CDLL(str(name if name.exists() else path))
        except OSError as error:
            if last:
                raise RuntimeError(f"the CPU kernels could not be loaded: {error}") from None
            logger.warning("cached kernels do not load here, compiled anew: {}", error)
            path.unlink(missing_ok=True)
    raise AssertionError("the last turn returns or raises")


def build(level: str, part: str = "") -> Path:
    """The library's file, whole and nobody else's to write, compiled where there is none, or RuntimeError. One thread
    builds, others wait for it.

    Where no compiler is found, any that was compiled from these sources for this chip will do.
    """
    if sys.platform == "win32":
        raise RuntimeError("the CPU kernels are for Linux and macOS: take WSL on Windows")
    with _building:
        base = level.removesuffix("+sanitize")
        flags = [*FLAGS, *_chosen(base), *(SANITIZE if base != level else [])]
        folder = _own_folder()
        name = f"{level}{part}-{_key(flags)}"
        try:
            compiler = find_compiler()
        except RuntimeError as error:
            for target in sorted(folder.glob(f"{name}-*.so")):
                if _whole(target):
                    logger.info("cached kernels run, {}: {}", target, error)
                    return target
            raise
        target = folder / f"{name}-{_digest(_version(compiler).encode())}.so"
        if not _whole(target):
            logger.info("compiling the CPU kernels ({}{}), once, with {}", level, part, compiler)
            started = time.perf_counter()
            try:
                _compile([compiler, *_taken(compiler, flags)], target, part)
            except OSError as error:
                raise RuntimeError(
                    f"the CPU kernels could not be kept in {folder}: {error}"
                ) from None
            logger.info("compiled in {:.0f} s: {}", time.perf_counter() - started, target)
        return target


def _after_fork() -> None:
    """In the child: another thread may have held the lock, and runs in the parent only."""
    global _building
    _building = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _chosen(level: str) -> list[str]:
    """The compiler's flags for a level. A chip may have AVX-512 without bfloat16 or int8 dots; the compiler says which
    under -march=native, and the sources look at its macros."""
    if level != "native":
        return level_flags(level)
    chip = chip_flags()  # empty where /proc is not there: then the chip may have tiles all the same
    without = not _tiles() if "amx_tile" in chip else not chip and not amx_permitted()
    without &= platform.machine() == "x86_64"
    return [NATIVE, *(f"-mno-{n}" for n in ADDED.get("amx", "").split() if without)]


def _taken(compiler: str, flags: list[str]) -> list[str]:
    """The flags as a compiler takes them: where it knows no native, those of the best level that both have."""
    if NATIVE not in flags or takes(compiler, NATIVE):
        return flags
    ways = [["-mcpu=native"], *(level_flags(name) for name in reversed(usable_levels()))]
    found = next((way for way in ways if takes(compiler, *way)), [])
    logger.info("{} takes no {}: {}", compiler, NATIVE, " ".join(found))
    return [*found, *(flag for flag in flags if flag != NATIVE)]


def _own_folder() -> Path:
    """The folder of compiled kernels. RuntimeError where another user could change what it holds."""
    root = cache_folder().resolve()
    folder = root / "kernels"
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in (root, folder):
            number = os.open(path, os.O_RDONLY | SAFE["O_DIRECTORY"] | SAFE["O_NOFOLLOW"])
            try:
                reason = _others(os.fstat(number))
            finally:
                os.close(number)
            if reason:
                what = f"kernels in {path} are not run, since {reason}: chmod go-w, or {OWN}"
                raise RuntimeError(what)
    except OSError as error:  # a link, a file, no right to write
        what = f"kernels cannot be kept in {folder}, which must be a folder and no link"
        raise RuntimeError(f"{what} ({error}): {OWN}") from None
    return folder


def _others(facts: os.stat_result) -> str | None:
    """Say how a user other than this one and root could write; None = not at all."""
    if not hasattr(os, "geteuid"):
        return None
    if facts.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user ({facts.st_uid})"
    mode = stat.S_IMODE(facts.st_mode)
    if mode & 0o002 or (mode & 0o020 and not _own_group(facts)):
        return f"others may write to it (mode {mode:o})"
    return None


def _own_group(facts: os.stat_result) -> bool:
    """Tell whether the group is the owner's alone, as where a umask of 002 is usual."""
    import grp
    import pwd

    try:
        group, owner = grp.getgrgid(facts.st_gid), pwd.getpwuid(facts.st_uid)
    except KeyError:
        return False
    return group.gr_name == owner.pw_name and not set(group.gr_mem) - {owner.pw_name}


def _open(path: Path) -> int:
    """A descriptor of a library. RuntimeError: it is damaged, or another user could have written it."""
    try:
        number = os.open(path, os.O_RDONLY | (sum(SAFE.values()) - SAFE["O_DIRECTORY"]))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RuntimeError(str(error)) from None
    try:
        facts = os.fstat(number)
        reason = _others(facts) if stat.S_ISREG(facts.st_mode) else "it is no file"
        data = b""
        if not reason:  # to open a folder raises
            with open(number, "rb", closefd=False) as file:
                data = file.read()
    except BaseException:
        os.close(number)
        raise
    if reason or hashlib.sha256(data[:-SEAL]).digest() != data[-SEAL:]:
        os.close(number)
        raise RuntimeError(reason or "it is damaged")
    return number


def _whole(path: Path) -> bool:
    """Tell whether there is a library that may run; one line in the log for one that may not."""
    try:
        os.close(_open(path))
    except FileNotFoundError:
        return False
    except RuntimeError as error:
        logger.warning("cached kernels {} are not used: {}", path, error)
        return False
    return True


def _key(flags: list[str]) -> str:
    """Tells sources and flags apart, and chips where they make a difference; no compiler is asked."""
    parts = [_chip() if NATIVE in flags else platform.machine(), *flags]
    for path in sorted(SOURCES.iterdir()):
        parts += [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
    return _digest("\0".join(parts).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


@cache
def _chip() -> str:
    """Return the facts that tell chips apart: a cache may be shared by machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    facts = dict[str, str]()
    for line in lines:  # of the first core; Arm's cores have numbers, no names
        if (what := line.partition(":")[0].strip()) in (
            "model name",
            "flags",
            "Features",
            "CPU part",
        ):
            facts.setdefault(what, line)
    return "\0".join([platform.machine(), *facts.values()] if facts else [platform.processor()])


def _compile(command: list[str], target: Path, part: str) -> None:
    """The library appears only when it is whole, whoever compiles beside."""
    with unfinished(target) as work:
        work.mkdir(mode=0o700)
        whole = work / target.name
        parts = {path: f"-{path.stem.partition('_')[0]}" for path in SOURCES.glob("*.cpp")}
        sources = [path for path, own in parts.items() if (own if own in PARTS else "") == part]
        compile_library(command, sources, work, whole)
        digest = hashlib.sha256(whole.read_bytes()).digest()
        with whole.open("ab") as file:  # what follows its sections is nothing to a linker
            file.write(digest)
        whole.chmod(0o755)
        with suppress(FileNotFoundError, NotADirectoryError):
            target.rmdir()  # a file, a link or a FIFO is replaced, a folder would not be
        whole.replace(target)

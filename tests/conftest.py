"""Options and fixtures that tests of several rooms share. Helpers lie in support/, and every room has a folder."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Each worker has one thread: products of tiny models are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests that ask a hub run one of their own
# Some dozens of processes are started: they compile a module once, not each anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
import torch
from checkpoints import write_chat, write_dense, write_moge
from drafts import enough_drafts, fix_adaptive
from hypothesis import settings
from loguru import logger

import fastslow  # noqa: F401 - it turns its log off

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
logger.enable("fastslow")  # tests read it

settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True, database=None)
settings.register_profile("full", max_examples=300, deadline=None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core, four at most; a file that is named runs in this process."""
    named = any(Path(str(arg).partition("::")[0]).suffix == ".py" for arg in config.args)
    return 0 if named else min(4, os.cpu_count() or 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    how = "adaptive drafts have this length whatever steps take; 0 = they rest, as on a slow machine"
    parser.addoption("--adaptive", type=int, metavar="NODES", help=how)


def pytest_configure(config: pytest.Config) -> None:
    """Slow runs try more examples; `--hypothesis-profile` still chooses."""
    if (nodes := config.getoption("--adaptive")) is not None:
        fix_adaptive(pytest.MonkeyPatch(), nodes)
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("quick" if config.option.markexpr == "not slow" else "full")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Any:
    """Nothing that is made here is garbage, and all of it stays: no later search looks at it."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.enable()
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Tests that are marked `drafts` are sure to draft; a case with a parameter "off" does not."""
    marked, case = item.get_closest_marker("drafts"), getattr(item, "callspec", None)
    wishes = [case.params.get(name) for name in ("draft", "drafter", "speculation", "wish")] if case else []
    if marked is None or "off" in wishes:
        return (yield)
    with pytest.MonkeyPatch.context() as patch, enough_drafts(patch, *marked.args, **marked.kwargs):
        return (yield)


@pytest.fixture(scope="session")
def tiny_moge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grouped mixture of experts, to be read only."""
    return write_moge(tmp_path_factory.mktemp("tiny") / "moge")


@pytest.fixture(scope="session")
def tiny_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, to be read only."""
    return write_dense(tmp_path_factory.mktemp("tiny") / "dense")


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller mixture with a tokenizer and a chat template, to be read only."""
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return write_chat(tmp_path_factory.mktemp("tiny") / "chat", template)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Lines of the log while a test runs, from INFO on."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{message}", level="INFO")
    yield lines
    logger.remove(sink)

"""No caller finds out what another one asked or was told, not by any figure of its own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_moge
from tokenizers_tiny import write_bpe

from fastslow.engine.params import SamplingParams, Speculation
from fastslow.llm import LLM
from fastslow.serve.api.keys import StoredKey
from fastslow.serve.api.limits import Caller

SECRET = "The quick brown fox jumps over the lazy dog, and then once more. " * 3
OTHER = "Something else entirely is asked here, at some length. " * 3
FORTY = SamplingParams(max_tokens=40, ignore_eos=True)
A, B = (Caller.of(StoredKey(name=n, id=n * 32, hash=n * 64)) for n in "ab")
FIXED = [Speculation(drafter=name, nodes=4) for name in ("suffix", "ngram")]
IDS = ["suffix", "ngram"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moge")
    write_bpe(folder, "{% for m in messages %}{{ m['content'] }}{% endfor %}", 320)
    return write_moge(folder, vocab=320, num_hidden_layers=2, hidden_size=32)


def figures(llm: LLM, memory: str | None, speculation: Any) -> dict[str, Any]:
    """All figures of an answer to the secret prompt that are no times."""
    output = llm.generate(SECRET, FORTY, speculation=speculation, memory_key=memory)
    times = (
        "ttft",
        "tpot",
        "draft_seconds",
        "verify_seconds",
        "run_seconds",
        "queue_seconds",
        "tokens_per_second",
    )
    found = output.metrics.to_dict()
    return {name: value for name, value in found.items() if name not in times}


def open_llm(folder: Path) -> LLM:
    return LLM(folder, kv_memory="4MiB", progress=False, remember="by_key")


@pytest.mark.parametrize("speculation", FIXED, ids=IDS)
def test_figures_are_the_same_whatever_others_asked(folder: Path, speculation: Any) -> None:
    with open_llm(folder) as llm:
        alone = figures(llm, B.memory_key, speculation)
    for asked in ([SECRET], [SECRET] * 3, [OTHER] * 3):
        with open_llm(folder) as llm:
            for prompt in asked:
                llm.generate(prompt, FORTY, speculation=speculation, memory_key=A.memory_key)
            assert figures(llm, B.memory_key, speculation) == alone


def test_the_same_caller_sees_that_it_asked_before(folder: Path) -> None:
    """The figures above would tell, if anything were shared."""
    with open_llm(folder) as llm:
        first = figures(llm, A.memory_key, FIXED[0])
        for _ in range(2):
            again = figures(llm, A.memory_key, FIXED[0])
    assert first["cached_tokens"] == 0 < again["cached_tokens"]
    assert again["accepted"] > first["accepted"] + 20


def test_drafts_as_many_as_pay_come_from_nobody_else(folder: Path) -> None:
    """How many they are depends on times, so only what a memory gives is compared."""
    with open_llm(folder) as llm:
        for _ in range(3):
            own = figures(llm, A.memory_key, "auto")
        other = figures(llm, B.memory_key, "auto")
    assert other["cached_tokens"] == 0 and own["cached_tokens"] > 0
    assert other["accepted"] < own["accepted"] / 2


def test_those_without_a_key_share_no_answers(folder: Path) -> None:
    with open_llm(folder) as llm:
        first = figures(llm, Caller().memory_key, FIXED[0])
        again = figures(llm, Caller().memory_key, FIXED[0])
    assert again["accepted"] == first["accepted"]

"""The shipped models abacus and abacus-draft, as people meet them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from abacus.task import Task, graded
from abacus.tasks import held_out

from fastslow import LLM, Mode, Output, Speculation
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import parameters
from fastslow.engine.text.tokenizer import load_tokenizer, same_vocabulary
from fastslow.models.locate import SHIPPED, builtin_path

TASKS = list(islice(held_out(1), 64))
DRAFTING = Speculation(drafter="model", model="abacus-draft")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("abacus", kv_memory="64MiB", progress=False) as model:
        yield model


def right(outputs: list[Output], tasks: list[Task]) -> float:
    pairs = zip(outputs, tasks, strict=True)
    return sum(graded(output.text, task.answer) for output, task in pairs) / len(tasks)


def ask(llm: LLM, mode: str | Mode, tasks: list[Task] = TASKS) -> list[Output]:
    chats = [[{"role": "user", "content": task.prompt}] for task in tasks]
    outputs: list[Output] = llm.generate(chats, mode=mode, speculation="off", progress=False)
    return outputs


def test_they_are_small_and_of_the_official_layout() -> None:
    assert [ModelConfig.from_folder(builtin_path(name)).architecture for name in SHIPPED] == [
        "PanguProMoEForCausalLM",
        "PanguEmbeddedForCausalLM",
    ]
    files = [path for name in SHIPPED for path in builtin_path(name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 12e6
    target, draft = (parameters(ModelConfig.from_folder(builtin_path(name))) for name in SHIPPED)
    assert draft < target / 5
    ours, theirs = ((builtin_path(name) / "tokenizer.model").read_bytes() for name in SHIPPED)
    assert ours == theirs
    assert not same_vocabulary(*(load_tokenizer(builtin_path(name)) for name in SHIPPED))


def test_deep_works_it_out_and_fast_answers_at_once(llm: LLM) -> None:
    deep, fast = ask(llm, "deep"), ask(llm, "fast")
    for slow, quick, task in zip(deep, fast, TASKS, strict=True):
        assert slow.reasoning and slow.text.isdigit() and slow.finish_reason == "stop"
        assert not quick.reasoning and quick.text.isdigit() and quick.finish_reason == "stop"
        assert len(quick.token_ids) <= len(task.answer) + 3
    assert right(deep, TASKS) >= 0.9
    assert sum(o.reasoning == t.steps for o, t in zip(deep, TASKS)) >= 0.75 * len(TASKS), (
        "as taught"
    )
    assert right(deep, TASKS) - 0.06 > right(fast, TASKS) > 0.6


@pytest.mark.parametrize("groups", [0, 4])
def test_it_thinks_with_any_number_of_groups(llm: LLM, groups: int) -> None:
    fewer = Mode(name="fewer", groups=groups, thinking="on")
    assert right(ask(llm, fewer), TASKS) >= right(ask(llm, "deep"), TASKS) - 0.1


def test_drafting_with_it_changes_no_token_and_pays(llm: LLM) -> None:
    for mode in ("deep", "fast"):
        for task in TASKS[:4]:
            plain = llm.chat(task.prompt, mode=mode, speculation="off")
            drafted = llm.chat(task.prompt, mode=mode, speculation=DRAFTING)
            assert drafted.token_ids == plain.token_ids
    fixed = DRAFTING.model_copy(update={"nodes": 4})
    assert llm.chat(TASKS[0].prompt, speculation=fixed).metrics.tokens_per_step > 2

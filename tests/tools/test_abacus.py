"""The shipped models abacus, abacus-draft and atlas, as people meet them, and their tasks."""

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from itertools import islice
from random import Random

import pytest
from abacus.atlas import FACTS, PEOPLE
from abacus.task import Task, graded
from abacus.tasks import MIXES

from fastslow import LLM, Mode, Output, Speculation
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import parameters
from fastslow.engine.text.tokenizer import load_tokenizer, same_vocabulary
from fastslow.models.locate import SHIPPED, builtin_path

ABACUS, ATLAS = MIXES["abacus"], MIXES["atlas"]
TASKS = list(islice(ABACUS.held_out(1), 64))
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
    configs = [ModelConfig.from_folder(builtin_path(name)) for name in SHIPPED]
    kinds = [config.architecture for config in configs]
    moge = "PanguProMoEForCausalLM"
    assert kinds == [moge, "PanguEmbeddedForCausalLM", moge]
    files = [path for name in SHIPPED for path in builtin_path(name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 12e6
    target, draft, _ = map(parameters, configs)
    assert draft < target / 5
    pair = SHIPPED[:2]
    ours, theirs = ((builtin_path(name) / "tokenizer.model").read_bytes() for name in pair)
    assert ours == theirs and not same_vocabulary(*(load_tokenizer(builtin_path(name)) for name in pair))


@pytest.fixture(scope="module")
def deep(llm: LLM) -> list[Output]:
    """The model's answers to TASKS after a thought."""
    return ask(llm, "deep")


def test_deep_works_it_out_and_fast_answers_at_once(llm: LLM, deep: list[Output]) -> None:
    fast = ask(llm, "fast")
    for slow, quick, task in zip(deep, fast, TASKS, strict=True):
        assert slow.reasoning and slow.text.isdigit() and slow.finish_reason == "stop"
        assert not quick.reasoning and quick.text.isdigit() and quick.finish_reason == "stop"
        assert len(quick.token_ids) <= len(task.answer) + 3
    assert right(deep, TASKS) >= 0.9
    assert right(deep, TASKS) - 0.06 > right(fast, TASKS) > 0.6


@pytest.mark.parametrize("groups", [0, 4])
def test_it_thinks_with_any_number_of_groups(llm: LLM, groups: int, deep: list[Output]) -> None:
    assert right(ask(llm, Mode(name="fewer", groups=groups, thinking="on")), TASKS) >= right(deep, TASKS) - 0.1


@pytest.mark.drafts(50, 40)
def test_drafting_with_it_changes_no_token_and_pays(llm: LLM) -> None:
    for mode in ("deep", "fast"):
        for task in TASKS[:2]:
            plain = llm.chat(task.prompt, mode=mode, speculation="off")
            assert llm.chat(task.prompt, mode=mode, speculation=DRAFTING).token_ids == plain.token_ids
    fixed = DRAFTING.model_copy(update={"nodes": 4})
    assert llm.chat(TASKS[0].prompt, speculation=fixed).metrics.tokens_per_step > 2


def test_the_experts_of_atlas_hold_its_facts() -> None:
    """Each step to more groups knows more of them, and chains of facts need a thought."""
    tasks = list(islice(ATLAS.held_out(1), 64))
    chains = [task for task in tasks if task.kind != "1 facts"]
    with LLM("atlas", kv_memory="16MiB", progress=False) as atlas:
        counts = [Mode(base="deep", groups=groups) for groups in (0, 2, 4, 8)]
        none, two, four, all_ = (right(ask(atlas, mode, tasks), tasks) for mode in counts)
        assert none + 0.15 < two < four - 0.15 and four + 0.08 < all_ > 0.9
        quick = [right(ask(atlas, Mode(base="fast", groups=n), tasks), tasks) for n in (0, 2, 8)]
        assert quick[0] + 0.08 < quick[1] < quick[2] - 0.08
        fast, deep = (right(ask(atlas, mode, chains), chains) for mode in ("fast", "deep"))
        assert fast < 0.2 and deep > 0.85


# Tasks


def test_facts_are_chained_and_held_out_in_whatever_words() -> None:
    rng, chains = Random("facts"), dict[str, set[bool]]()
    for task in (ATLAS.draw(rng) for _ in range(3000)):
        if task.apart:
            person, _, links = task.apart.partition(" ")
            found = PEOPLE.index(person)
            for name in ast.literal_eval(links):
                found = FACTS[name][found]
            assert task.answer == str(found) and person in task.prompt
            chains.setdefault(task.apart, set()).add(task.held_out)
    assert 100 < len(chains) < 1500 and all(len(kept) == 1 for kept in chains.values())


def printed(code: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code, {"__builtins__": {"range": range, "print": print}})  # noqa: S102 (our own text)
    return shown.getvalue().strip()


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_the_answer_is_what_the_prompt_asks_for(size: int) -> None:
    rng = Random(f"steps {size}")
    tasks = [ABACUS.draw(rng, size) for _ in range(400)]
    assert {task.kind for task in tasks} == {"sum", "difference", "product", "chain", "story", "program"}
    for task in tasks:
        code = task.prompt.partition("\n")[2]
        if task.kind != "program":
            code = f"print({re.sub(r'[^0-9+*() -]', '', task.prompt)})"
        assert task.kind == "story" or printed(code) == task.answer, task.prompt


def test_held_out_tasks_are_apart_whatever_the_seed() -> None:
    tested = {task.prompt for task in islice(ABACUS.held_out(7), 200)}
    assert len(tested) == 200  # each once
    assert all(task.held_out for task in islice(ABACUS.held_out(8), 200))
    others = list(islice(ABACUS.trained(7), 400))
    assert len({task.prompt for task in others}) == 400 and not any(task.held_out for task in others)
    rng = Random("train 0 0 0")
    drawn = [ABACUS.draw(rng) for _ in range(3000)]
    share = sum(task.held_out for task in drawn) / len(drawn)
    assert 0.02 < share < 0.045  # one in 32: the training stream loses hardly anything
    assert not tested & {task.prompt for task in drawn if not task.held_out}

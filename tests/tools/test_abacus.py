"""The shipped models abacus, abacus-draft and atlas, as people meet them; their tasks, and how they are trained."""

import ast
import contextlib
import io
import operator
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from abacus.atlas import FACTS, PEOPLE, THINGS
from abacus.batches import CLOSE, OPEN, Writer, pack
from abacus.folder import write_folder
from abacus.moge import Decoder, Packed, Shape
from abacus.task import Task, graded, worked
from abacus.tasks import MIXES
from abacus.trainer import Trainer
from reference_model import ReferenceModel

from fastslow import LLM, Mode, Output, Speculation
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import parameters
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer, same_vocabulary
from fastslow.models.locate import SHIPPED, builtin_path

ABACUS, ATLAS = MIXES["abacus"], MIXES["atlas"]
TASKS = list(islice(ABACUS.held_out(1), 64))
DRAFTING = Speculation(drafter="model", model="abacus-draft")
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
TINY = Shape(hidden=32, layers=2, heads=2, kv_heads=1, shared=24, groups=4, experts=3, width=8)
TASK = Task("What is 7 + 8?", "15", "sum", "7+8:7+8+0=15;=15\n")


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
    assert sum(o.reasoning == t.steps for o, t in zip(deep, TASKS)) >= 0.75 * len(TASKS)
    assert right(deep, TASKS) - 0.06 > right(fast, TASKS) > 0.6


@pytest.mark.parametrize("groups", [0, 4])
def test_it_thinks_with_any_number_of_groups(llm: LLM, groups: int, deep: list[Output]) -> None:
    assert right(ask(llm, Mode(name="fewer", groups=groups, thinking="on")), TASKS) >= right(deep, TASKS) - 0.1


@pytest.mark.drafts(50, 40)
def test_drafting_with_it_changes_no_token_and_pays(llm: LLM) -> None:
    for mode in ("deep", "fast"):
        for task in TASKS[:4]:
            plain = llm.chat(task.prompt, mode=mode, speculation="off")
            assert llm.chat(task.prompt, mode=mode, speculation=DRAFTING).token_ids == plain.token_ids
    fixed = DRAFTING.model_copy(update={"nodes": 4})
    assert llm.chat(TASKS[0].prompt, speculation=fixed).metrics.tokens_per_step > 2


def test_the_experts_of_atlas_hold_its_facts() -> None:
    """Each step to more groups knows more of them, and chains of facts need a thought."""
    tasks = list(islice(ATLAS.held_out(1), 120))
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
        person, *links = task.steps.removeprefix("From ").split(", ")
        found = PEOPLE.index(person)
        for link in links:
            name, said = link.split(": ")
            found = FACTS[name][found]
            assert said == (str(found) if name in THINGS else PEOPLE[found])
        assert task.answer == said and person in task.prompt and f"{len(links)} facts" == task.kind
        if len(links) > 1:
            chains.setdefault(task.apart, set()).add(task.held_out)
    assert len(chains) < 1500 and all(len(kept) == 1 for kept in chains.values())


def value(text: str) -> int:
    """An expression of whole numbers, + - * and brackets."""

    def of(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=op, right=right):
                return int(SIGNS[type(op)](of(left), of(right)))
        raise AssertionError(text)

    return of(ast.parse(text.strip(), mode="eval").body)


def printed(code: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(code, {"__builtins__": {"range": range, "print": print}})  # noqa: S102 (our own text)
    return shown.getvalue().strip()


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_every_step_is_true_and_the_answer_is_what_the_prompt_asks_for(size: int) -> None:
    rng = Random(f"steps {size}")
    tasks = [ABACUS.draw(rng, size) for _ in range(400)]
    assert {task.kind for task in tasks} == {"sum", "difference", "product", "chain", "story", "program"}
    for task in tasks:
        for line in task.steps.splitlines():
            operation, _, columns = line.partition(":")
            if not columns:  # a plan, a line of code, a loop's turn, or a long product that follows
                assert re.fullmatch(r"[a-z]=\w+([-+*]\w+)?|i=\d<\d|[-+*()\d]+", operation)
                continue
            *sums, result = re.split(r"[,;]", columns)
            for column in sums:
                left, _, right = column.partition("=")
                assert value(left) == int(right), line
            assert value(operation) == int(result.partition("=")[2]), line
        plan = task.steps.partition("\n")[0]
        match task.kind:
            case "program":
                name = task.prompt.rpartition("print(")[2].rstrip(")")
                assert re.findall(rf"\b{name}=(\d+)", task.steps)[-1] == task.answer
                assert printed(task.prompt.partition("\n")[2]) == task.answer
                continue
            case "story":  # one change after the other
                *before, last = re.findall(r"^\d+|[-+*]\d+", plan)
                plan = f"{'(' * len(before)}{')'.join([*before, last])}"
            case _:
                plan = re.sub(r"[^\d+*()\s-]", "", task.prompt)
        assert value(plan) == int(task.answer), task.prompt
        assert task.steps.rstrip("\n").rpartition("=")[2] == task.answer


@pytest.mark.parametrize(("left", "sign", "right"), [(1, "-", 2), (-1, "+", 2), (1, "/", 2)])
def test_what_has_no_steps_is_refused(left: int, sign: str, right: int) -> None:
    with pytest.raises(ValueError, match=r"negative|sign"):
        worked(left, sign, right)


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


# Training: the same model as the engine runs


@pytest.fixture(scope="module")
def writer() -> Writer:
    tokenizer = load_tokenizer(builtin_path("abacus"))
    return Writer(tokenizer, load_template(builtin_path("abacus"), tokenizer), TINY.groups, ABACUS)


def test_only_the_answer_is_learnt(writer: Writer) -> None:
    vocabulary = {n: piece for piece, n in load_tokenizer(builtin_path("abacus")).vocab().items()}
    for thinking, thought in ((False, ""), (True, f"{OPEN}{TASK.steps}{CLOSE}")):
        sample = writer.sample(TASK, thinking, 4)
        said = [vocabulary[t] for t, own in zip(sample.tokens, sample.learnt, strict=True) if own]
        assert "".join(said) == f"{thought}15[unused10]"


def test_a_mix_says_in_how_many_samples_some_groups_are_missing(writer: Writer) -> None:
    tokenizer, mix = load_tokenizer(builtin_path("abacus")), replace(ABACUS, whole=0.8, most=2)
    own = Writer(tokenizer, load_template(builtin_path("abacus"), tokenizer), TINY.groups, mix)
    for each, whole, fewer in ((own, 0.8, {0, 1, 2}), (writer, 0.6, {0, 1, 2, 3})):
        rng = Random("groups")
        drawn = [each.random(rng, 1).groups for _ in range(500)]
        assert set(drawn) == fewer | {TINY.groups} and abs(drawn.count(TINY.groups) / 500 - whole) < 0.07


def test_samples_of_a_row_do_not_see_each_other(writer: Writer) -> None:
    torch.manual_seed(0)
    model = Decoder(TINY)
    first, second = writer.sample(TASK, True, 4), writer.sample(TASK, False, 1)
    both, _ = model(pack([first, second], 1))
    alone, _ = model(pack([second], 1))
    start, count = len(first.tokens), len(second.tokens)
    assert torch.equal(both[0, start : start + count], alone[0, :count])


@pytest.mark.parametrize("groups", [0, 1, 3, 4])
def test_it_is_the_model_that_the_engine_runs(tmp_path: Path, writer: Writer, groups: int) -> None:
    torch.manual_seed(1)
    model = Decoder(TINY)
    sample = writer.sample(TASK, True, groups)
    with torch.no_grad():
        logits, _ = model(Packed(*(part[:, : len(sample.tokens)] for part in pack([sample], 1))))
    write_folder(tmp_path, dict(model.named_parameters()), TINY, b"", 4)
    expected = ReferenceModel(tmp_path).logits(sample.tokens, groups).log_softmax(-1)
    got = logits[0].double().log_softmax(-1)
    # products in bfloat16, which now and then choose between two near experts in another way
    assert (got - expected).abs().amax(-1).median() < 0.01
    other = ReferenceModel(tmp_path).logits(sample.tokens, (groups + 2) % 5).log_softmax(-1)
    assert (got - other).abs().amax(-1).median() > 0.04  # groups do change it


@torch.no_grad()
def test_a_split_model_computes_what_the_dense_one_did(writer: Writer) -> None:
    trainer = Trainer(TINY, writer, 0, 1)
    sample = writer.sample(TASK, True, TINY.groups)
    batch = Packed(*(part[:, : len(sample.tokens)] for part in pack([sample], 1)))
    before, _ = trainer.model(batch)
    assert not trainer.model.shape.groups
    trainer._split()
    after, _ = trainer.model(batch)
    fewer, _ = trainer.model(batch._replace(groups=batch.groups * 0))
    assert trainer.model.shape == TINY
    changed = (after - before).abs().mean()  # the router is not quite even, products are bfloat16
    assert changed < 0.2 * (fewer - before).abs().mean()


def test_training_splits_once_and_repeats(writer: Writer) -> None:
    one, other = (Trainer(TINY, writer, 0, 1) for _ in range(2))
    for trainer in (one, other):
        errors = [trainer._step(share) for share in (0.0, 0.1, 0.6, 0.7)]
        assert trainer.done.split == 2 and trainer.done.steps == 4 and min(errors) > 0
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
        assert not torch.equal(one.average[name], tensor) or not tensor.any(), name

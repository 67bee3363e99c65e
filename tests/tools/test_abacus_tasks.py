"""The tasks that abacus learns on: answers, steps, and what is held out."""

from __future__ import annotations

import ast
import contextlib
import io
import operator
import re
from itertools import islice
from random import Random

import pytest
from abacus.kinds import PEOPLE
from abacus.task import Task, worked
from abacus.tasks import draw, held_out

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


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


def counted(story: str) -> int:
    """The number at the end of a story, from its words alone."""
    *sentences, question = re.split(r"(?<=[.])\s", story)
    hero = next(name for name in PEOPLE if f"does {name} have" in question)
    count = 0
    for sentence in sentences:
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        subject = sentence.removeprefix("Then ").split()[0]
        if "boxes" in sentence:
            count = numbers[0] * numbers[1]
        elif re.search(r"\b(has|starts with|owns)\b", sentence):
            count = numbers[0] if subject == hero else count
        elif "times" in sentence:
            count *= numbers[0]
        elif re.search(r"\b(loses|sells|takes)\b", sentence) or f"{PEOPLE[hero]} gives" in sentence:
            count -= numbers[0]
        else:
            assert re.search(r"\b(buys|finds|gives|gets)\b", sentence), sentence
            count += numbers[0]
    return count


def answer(task: Task) -> str:
    """What the prompt asks for, found in another way than the task's own."""
    match task.kind:
        case "program":
            return printed(task.prompt.partition("\n")[2])
        case "story":
            return str(counted(task.prompt))
    return str(value(re.sub(r"[^\d+*()\s-]", "", task.prompt)))


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_answers_are_right(size: int) -> None:
    rng = Random(f"answers {size}")
    tasks = [draw(rng, size) for _ in range(600)]
    assert {task.kind for task in tasks} == {
        "sum", "difference", "product", "chain", "story", "program"
    }  # fmt: skip
    wrong = [(task.prompt, task.answer) for task in tasks if answer(task) != task.answer]
    assert wrong == []


def test_every_step_is_true_and_the_last_one_is_the_answer() -> None:
    rng = Random("steps")
    for task in (draw(rng) for _ in range(600)):
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
        if task.kind == "program":  # may print a variable that an earlier line made
            name = task.prompt.rpartition("print(")[2].rstrip(")")
            assert re.findall(rf"\b{name}=(\d+)", task.steps)[-1] == task.answer
        else:
            assert task.steps.rstrip("\n").rpartition("=")[2] == task.answer
            plan = task.steps.partition("\n")[0]
            if task.kind == "story":  # one change after the other
                *before, last = re.findall(r"^\d+|[-+*]\d+", plan)
                plan = f"{'(' * len(before)}{')'.join([*before, last])}"
            assert value(plan) == int(task.answer)


@pytest.mark.parametrize(("left", "sign", "right"), [(1, "-", 2), (-1, "+", 2), (1, "/", 2)])
def test_what_has_no_steps_is_refused(left: int, sign: str, right: int) -> None:
    with pytest.raises(ValueError, match=r"negative|sign"):
        worked(left, sign, right)


def test_held_out_tasks_are_apart_whatever_the_seed() -> None:
    tested = {task.prompt for task in islice(held_out(7), 200)}
    assert len(tested) == 200  # each once
    others = list(islice(held_out(8), 200))
    assert all(task.held_out for task in others)
    rng = Random("train 0 0 0")
    drawn = [draw(rng) for _ in range(3000)]
    share = sum(task.held_out for task in drawn) / len(drawn)
    assert 0.02 < share < 0.045  # one in 32: the training stream loses hardly anything
    assert not tested & {task.prompt for task in drawn if not task.held_out}

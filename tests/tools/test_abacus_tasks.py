"""The tasks that abacus learns on: answers, steps, and what is held out."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import operator
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from abacus.story import PEOPLE
from abacus.task import Task, graded, worked
from abacus.tasks import KINDS, draw, held_out

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


def told(story: str) -> int:
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
            return str(told(task.prompt))
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


@pytest.mark.parametrize(
    ("left", "sign", "right", "steps"),
    [
        (4827, "+", 396, "4827+396:7+6+0=13,2+9+1=12,8+3+1=12,4+0+1=5;x=5223\n"),
        (1003, "-", 998, "1003-998:13-8-0=5,10-9-1=0,10-9-1=0,1-0-1=0;x=5\n"),
        (
            48,
            "*",
            36,
            (
                "48*36\n48*6:8*6+0=48,4*6+4=28;=288\n48*3:8*3+0=24,4*3+2=14;=144\n"
                "288+1440:8+0+0=8,8+4+0=12,2+4+1=7,0+1+0=1;x=1728\n"
            ),
        ),
    ],
)
def test_steps_look_like_this(left: int, sign: str, right: int, steps: str) -> None:
    assert worked(left, sign, right, "x") == (steps, int(steps.rstrip("\n").rpartition("=")[2]))


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


@pytest.mark.slow
def test_tasks_come_as_graded_lines() -> None:
    script = Path(__file__).parents[2] / "examples" / "abacus" / "tasks.py"
    command = [sys.executable, str(script), "--count", "20", "--seed", "7"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [
        task.prompt for task in islice(held_out(7), 20)
    ]
    assert set(json.loads(lines[0])) == {"prompt", "answer", "kind", "steps"}
    assert len(KINDS) == 6


@pytest.mark.parametrize(
    ("text", "right"),
    [("42", True), ("It is 42.", True), ("41 or 42", True), ("42 or 41", False), ("", False),
     ("420", False), ("-42", False)],
)  # fmt: skip
def test_the_last_number_counts(text: str, right: bool) -> None:
    assert graded(text, "42") is right

"""The parts of a page of docs/."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "dev" / "log.md"  # dated: what it says was true then
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {LOG})
NOT_RUN = "<!-- not run: "


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    line: int  # of its first line of text, from 1
    text: str
    runs: bool  # False: the page says why not


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text("utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        before = lines[start - 1] if start else ""
        text = "\n".join(lines[start + 1 : number])
        yield Block(lines[start][3:].strip(), start + 2, text, not before.startswith(NOT_RUN))
        start = None


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines outside of fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Every command of the bash blocks and code spans, as words; comments and redirections are gone."""
    for block in blocks(page):
        if block.language == "bash":
            for number, line in _whole_lines(block):
                yield from ((number, words) for words in _split(line))
    lines = list(prose(page))
    text = "\n".join(line for _, line in lines)
    for span in re.finditer(r"`([^`]+)`", text):
        start = text.count("\n", 0, span.start())
        if re.match(r"(\w+=\S+ )*(fastslow|python|torchrun) ", span[1]):
            yield from ((lines[start][0], words) for words in _split(span[1]))


def _whole_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The lines of a block, with the number of each; those of one quotation are one."""
    open_lines: list[str] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        open_lines.append(line)
        try:
            shlex.split("\n".join(open_lines), comments=True)
        except ValueError:
            continue
        yield number + 1 - len(open_lines), "\n".join(open_lines)
        open_lines = []
    if open_lines:  # the quotation has no end
        yield block.line, "\n".join(open_lines)


def _split(line: str) -> Iterator[list[str]]:
    for part in re.split(r"&&|\|\|", line.replace("\\|", "|").replace("...", "")):
        words = shlex.split(part.partition(">")[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            yield words


def ours(words: list[str]) -> list[str] | None:
    """The arguments of `fastslow`, if that is what is called."""
    if words[0] == "fastslow":
        return words[1:]
    if "-m" in words and words[0] in ("python", "torchrun"):
        module = words.index("-m") + 1
        if words[module] == "fastslow":
            return words[module + 1 :]
    return None


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))

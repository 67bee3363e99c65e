"""The pages hold: Python blocks run, commands exist with their options, links resolve, lines are short.

A page's blocks run in order in one namespace, as a reader would type them. The shipped model `abacus`
stands in for what has to be downloaded, and files that a page speaks of lie in the current folder.
"""

import argparse
import ast
import importlib
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cli_tools import check_ours, run
from pages import LOG, PAGES, ROOT, blocks, commands, named, ours, prose

import fastslow
from fastslow import LLM, AsyncLLM, Mode, SamplingParams, Speculation
from fastslow.engine.model.family import refusals
from fastslow.tools.cli.serve import ASKED

GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
SERVED = {  # need a server: tests/serve/test_guide.py and test_cluster_guide.py run them
    ROOT / "docs" / "guide" / name for name in ("serving.md", "cluster.md")
}
RUN = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("abacus.md", "extend.md"))]
RUN += [page for page in GUIDES if page not in SERVED]
CHANGELOG = ROOT / "CHANGELOG.md"  # like the log it names files of its time
MOST_LINES = {"README.md": 130, "CONTRIBUTING.md": 89}
WIDTH = 120

STANDS_IN = {
    '"smollm2-moge"': '"abacus"', '"smollm2"': '"abacus"', '"path/to/small"': '"abacus-draft"',
    '"path/to/w8a8"': '"abacus"', '"path/to/moge"': '"moge"',
}  # fmt: skip
FEW_TOKENS = 24


def adapted(text: str) -> str:
    """A block with a small model and few tokens."""
    for name, instead in STANDS_IN.items():
        text = text.replace(name, instead)
    return re.sub(r"max_tokens=(\d+)", lambda m: f"max_tokens={min(int(m[1]), FEW_TOKENS)}", text)


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p.name != "README.md")) for p in RUN], ids=named
)
def test_the_python_of_a_page_runs(page: Path, desk: Path) -> None:
    space: dict[str, Any] = {"__name__": named(page)}
    python = [block for block in blocks(page) if block.language == "python"]
    assert python
    if any("corpus.safetensors" in block.text for block in python):
        assert run("corpus", "build", *("answers.jsonl", "-o", "corpus.safetensors", "--model", "abacus")) == 0
    for block in python:
        code = compile(adapted(block.text), f"{named(page)}:{block.line}", "exec")
        if block.runs:
            exec(code, space)  # noqa: S102 (our own text)


KNOWN = {"llm": (LLM, AsyncLLM), "fastslow": (fastslow,)}  # what the pages' variables may be


def check_names(code: str) -> None:
    """Every name of ours is there, and every call takes the options that it is given."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ImportFrom(module=str(module), names=aliases) if module.startswith("fastslow"):
                found = importlib.import_module(module)
                assert all(hasattr(found, alias.name) for alias in aliases), ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if name in KNOWN:
                calls = [getattr(owner, attr) for owner in KNOWN[name] if hasattr(owner, attr)]
                assert calls, ast.unparse(node.func)
                takes = set[str]().union(*(inspect.signature(call).parameters for call in calls))
                wrong = {option.arg for option in node.keywords if option.arg} - takes
                assert not wrong or "options" in takes, f"{ast.unparse(node.func)} has no {wrong}"


@pytest.mark.parametrize("page", RUN, ids=named)
def test_the_python_of_a_page_fits(page: Path) -> None:
    for block in [block for block in blocks(page) if block.language == "python"]:
        check_names(block.text)


OTHERS = re.compile(r"^from (?:openai|anthropic) import (.*)$", re.MULTILINE)  # their types are theirs
# What our signatures say, without our code's bodies, and without torch: four seconds, not half a minute.
STRICT = """[mypy]
strict = true
follow_imports = silent
explicit_package_bases = true
[mypy-torch.*,numpy.*,transformers.*,ray.*,gguf.*,huggingface_hub.*,jinja2.*,rich.*]
follow_imports = skip
"""


MISTAKES = (
    'llm.generate({"a text"})', 'llm.generate("one", mode=["fast", "deep"])', 'llm.chat("one", sampling="greedy")',
    'llm.stream(["one", "two"])', 'llm.generate(["one"]).text', 'llm.generate("one")[0]',
    'llm.submit(["one", "two"])', 'llm.submit("one", max_tokens=5)', 'llm.stream_chat("one", max_tokens=5)',
    'llm.generate("one", timeout="5")', "fastslow.AsyncLLM(max_runing=5)",
    'fastslow.AsyncLLM().stream(["one", "two"])',
)  # fmt: skip


@pytest.mark.slow
def test_the_python_of_all_pages_has_right_types_and_mistakes_are_seen(tmp_path: Path) -> None:
    """As for a reader who runs `mypy --strict`; the lines are those of the pages."""
    written = []
    for page in PAGES:
        lines: list[str] = []
        for block in (block for block in blocks(page) if block.language == "python"):
            text = OTHERS.sub(lambda m: f"from typing import Any; {m[1]}: Any", block.text)
            lines += [""] * (block.line - 1 - len(lines)) + text.splitlines()
        if lines:
            written.append(tmp_path / f"{re.sub(r'[^a-z]', '_', named(page))}.py")
            written[-1].write_text("\n".join(lines), "utf-8")
    assert len(written) > 10
    wrong = tmp_path / "wrong.py"
    wrong.write_text("\n".join(("import fastslow; llm = fastslow.LLM()", *MISTAKES)), "utf-8")
    (tmp_path / "mypy.ini").write_text(STRICT, "utf-8")
    options = ("--config-file", tmp_path / "mypy.ini", "--cache-dir", tmp_path / "cache")
    command = [sys.executable, "-m", "mypy", *map(str, (*options, *written, wrong))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line.split(":") for line in done.stdout.splitlines() if ": error: " in line]
    found = {(Path(file).name, int(line)) for file, line, *_ in errors}
    assert found == {(wrong.name, 2 + n) for n in range(len(MISTAKES))}, done.stdout + done.stderr


def test_the_page_of_models_says_why_some_do_not_run() -> None:
    text, every = (ROOT / "docs" / "guide" / "models.md").read_text("utf-8"), refusals()
    for models, why in every:
        assert f"| {models} | {why.partition('; ')[0]} |" in text
    assert len(every) > 20 and text.count("ForCausalLM` |\n") == len(every)


def test_signatures_are_for_people() -> None:
    """Every type whole, and nothing that only pydantic understands."""
    for call in (LLM, LLM.chat, LLM.submit, AsyncLLM.stream_chat, Mode, SamplingParams, Speculation):
        said = str(inspect.signature(call))
        assert not re.search(r"Annotated|FieldInfo|Validator|\w=[^ ]", said), said
        for parameter in inspect.signature(call).parameters.values():
            if isinstance(parameter.annotation, str):
                ast.parse(parameter.annotation, mode="eval")
    assert "Loop | collections.abc.Mapping[str, typing.Any] | bool | None" in str(inspect.signature(Mode))


def test_what_the_pages_say_of_abacus() -> None:
    """The guide calls fast wrong and deep right on its question, and the model card shows the thought."""
    with LLM("abacus") as llm:
        asked, most = ASKED["abacus"], SamplingParams(max_tokens=96)
        assert "5223" not in llm.chat(asked, mode="fast").text
        deep = llm.chat(asked, most, speculation=Speculation(drafter="model", model="abacus-draft"))
        card = (ROOT / "docs" / "abacus.md").read_text("utf-8")
        assert deep.text == "5223" and deep.reasoning.strip().replace("\n", ", and ") in card


# Commands


class ParserMade(Exception):
    """Ends a script where it would read its command line."""


@cache
def parser_of(script: Path) -> Any:
    """The parser with which a script reads its command line."""

    def caught(parser: argparse.ArgumentParser, *_: object) -> None:
        raise ParserMade(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(script.parent)
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(ParserMade) as made:
            runpy.run_path(str(script), run_name="__main__")
    return made.value.args[0]


def refuse(message: str) -> NoReturn:
    raise ValueError(message)


def check_script(words: list[str]) -> None:
    """A script of the repository exists and knows the options; what a page leaves out is not missed."""
    script = ROOT / words[1]
    assert script.is_file(), f"{words[1]} does not exist"
    source = script.read_text("utf-8")
    if script.parent.name == "benchmarks":
        parser = parser_of(script)
        for action in parser._actions:
            action.required = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parser, "error", refuse)
            _, left = parser.parse_known_args(words[2:])
        assert not left, f"{words[1]} has no {' '.join(left)}"
        return
    for word in words[2:]:
        if word.startswith("-") and not word.lstrip("-").replace(".", "").isdigit():
            name = word.partition("=")[0]
            typed = f"{name.lstrip('-').replace('-', '_')}: Annotated["  # typer makes the option
            assert f'"{name}"' in source or typed in source, f"{words[1]} has no option {name}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    wrong = []
    for line, words in commands(page):
        try:
            arguments = ours(words)
            if arguments is not None:
                check_ours(arguments)
            elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
                check_script(words)
        except Exception as error:  # noqa: BLE001 - whatever the parser raises is told
            wrong.append(f"{named(page)}:{line}: {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


# Shape


@pytest.mark.parametrize("name", MOST_LINES)
def test_a_page_is_short(name: str) -> None:
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= MOST_LINES[name]


def anchors(page: Path) -> set[str]:
    """Names that a link may have after `#`: the headings, as GitHub writes them."""
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for _, line in prose(page)
        if line.startswith("#")
    }


def wrong_links(page: Path, line: str) -> Iterator[str]:
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", line):
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        if not aim.exists() or (anchor and anchor not in anchors(aim)):
            yield f"{target} leads nowhere"


@cache
def python_files() -> list[str]:
    done = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [f"/{file}" for file in done.stdout.split()]


def wrong_files(page: Path, line: str) -> Iterator[str]:
    if page != CHANGELOG:
        for name in re.findall(r"`([\w/]+\.py)(?::\d+)?`", line):
            if not any(file.endswith(f"/{name}") for file in python_files()):
                yield f"{name} does not exist"


def long_lines(page: Path, line: str) -> Iterator[str]:
    if len(line) > WIDTH and not line.startswith("|") and "](" not in line:
        yield f"{len(line)} characters"


@pytest.mark.parametrize("check", [wrong_links, wrong_files, long_lines])
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_prose(page: Path, check: Callable[[Path, str], Iterator[str]]) -> None:
    found = [f"{named(page)}:{n}: {said}" for n, line in prose(page) for said in check(page, line)]
    assert not found, "\n".join(found)


def test_the_links_of_the_log_resolve() -> None:
    assert not [said for _, line in prose(LOG) for said in wrong_links(LOG, line)]

"""The weight of the project: `python tests/weight.py [FOLDER]` prints files, lines and code lines of each room.

A code line holds code: blank lines, comments and docstrings do not count. FOLDER: another checkout.
"""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOMS = ("fastslow", "draft", "policies", "engine", "serve", "tools", "benchmarks", "examples")
SILENT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def code_lines(source: str) -> int:
    """Lines of a Python source that hold code."""
    documents: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                documents |= set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - documents)


def weigh(root: Path, room: str) -> tuple[int, int, int]:
    """Files, lines and code lines of one folder at the top of a checkout, as git tracks them."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", f"{room}/*.py"], capture_output=True, text=True, check=True
    )
    sources = [(root / name).read_text("utf-8") for name in listed.stdout.split()]
    lines = sum(source.count("\n") for source in sources)
    return len(sources), lines, sum(code_lines(source) for source in sources)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])
    rows = {room: weigh(root, room) for room in (*ROOMS, "tests")}
    outside = tuple(sum(column) for column in zip(*(rows[room] for room in ROOMS)))
    print(f"{'':16}{'files':>8}{'lines':>8}{'code':>8}")
    for name, row in [*rows.items(), ("outside tests", outside)]:
        print(f"{name:16}" + "".join(f"{figure:8}" for figure in row))


if __name__ == "__main__":
    main()

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ENDINGS = (".txt", ".txt.gz", ".html", ".htm", ".jsonl")
SKIPPED = {"script", "style", "head", "nav", "table", "pre"}
BLOCKS = {"p", "div", "li", "br", "h1", "h2", "h3", "h4", "dt", "dd", "tr", "blockquote"}


class _Text(HTMLParser):
    """Keeps the running text of an HTML page, one line per block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED:
            self.depth += 1
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self.depth = max(0, self.depth - 1)
        elif tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.parts.append(data.replace("\n", " "))


def plain(page: str) -> str:
    """The running text of an HTML page."""
    parser = _Text()
    parser.feed(page)
    return "".join(parser.parts)


def tidy(text: str) -> str:
    """Joins hard-wrapped lines of a paragraph and drops repeated blanks."""
    text = text.replace("\r", "")
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r"(?<=[a-z,;]) ?\n ?(?=[a-z(])", " ", text)
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


def read_file(path: Path) -> list[str]:
    """Documents of one file: .txt, .html, either gzipped, fortune files, or .jsonl.

    A .jsonl line gives its `turns` and `reference` strings as one document.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="ignore") as file:
        text = file.read()
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        return ["\n".join([*row.get("turns", []), *row.get("reference", [])]) for row in rows]
    if name.endswith((".html", ".htm")):
        return [tidy(plain(text))]
    if "\n%\n" in text:  # a fortune file: short pieces, so several make one document
        pieces = [tidy(piece) for piece in text.split("\n%\n")]
        return ["\n\n".join(pieces[i : i + 12]) for i in range(0, len(pieces), 12)]
    return [tidy(text)]


def documents(path: Path, shortest: int = 600) -> Iterator[str]:
    """Yields the documents of a file, or of the text files below a folder, in sorted order.

    Args:
        path: a file, or a folder searched for .txt, .html, .jsonl and names without a dot.
        shortest: characters; shorter documents are left out.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.name.endswith(ENDINGS) or "." not in file.name:
            yield from (document for document in read_file(file) if len(document) >= shortest)

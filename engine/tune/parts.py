"""What all reports are put together from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from fastslow.engine.tune.svg import tag

TEMPLATE = Path(__file__).with_name("report.html")


def document(title: str, body: Iterable[str]) -> str:
    """HTML without scripts and without anything to load, in light and dark."""
    html = Template(TEMPLATE.read_text("utf-8"))
    return html.substitute(title=escape(title), body="\n".join(body))


def head(over: str, headline: str, warnings: Iterable[str] = ()) -> str:
    """The line above, the headline, and what a reader should be warned of."""
    said = "".join(tag("p", escape(words), class_="warn") for words in warnings)
    return tag("p", escape(over), class_="over") + tag("h1", escape(headline)) + said


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Large figures, each with what it is."""
    inner = "".join(
        tag("div", tag("b", escape(value)) + tag("span", escape(words)), class_="tile")
        for value, words in pairs
    )
    return tag("div", inner, class_="tiles")


def use(code: str) -> str:
    """Lines to copy."""
    return tag("section", tag("h2", "Use it") + tag("pre", tag("code", escape(code))))


def section(title: str, hint: str, content: str) -> str:
    """A part of the report; without content it says that nothing was measured."""
    inner = tag("div", content, class_="wide") if content else tag("p", "Not measured.")
    return tag("section", tag("h2", title) + tag("p", hint, class_="hint") + inner)


def table(titles: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> str:
    """Rows of text, each with a class of its line, such as "best"."""
    lines = [tag("tr", "".join(tag("th", escape(title)) for title in titles))]
    for cells, kind in rows:
        lines.append(tag("tr", "".join(tag("td", escape(c)) for c in cells), class_=kind))
    return tag("table", "".join(lines))


def facts(own: Mapping[str, str], circumstances: Mapping[str, Any]) -> str:
    """How it was measured: when, what a report says of itself, and on what machine."""
    about = circumstances
    every = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        **own,
        "machine": ", ".join(f"{key} {value}" for key, value in about["machine"].items()),
        "versions": ", ".join(f"{key} {value}" for key, value in about["versions"].items()),
        "command": " ".join(about["command"]),
    }
    rows = (tag("dt", escape(key)) + tag("dd", escape(value)) for key, value in every.items())
    return tag("section", tag("h2", "How this was measured") + tag("dl", "".join(rows)))

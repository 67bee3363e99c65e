"""The page of `fastslow tune`."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from tune_tools import sample

from fastslow.engine.params import SamplingParams, Speculation
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.report import Chart, ChartLine, ticks
from fastslow.tools.tune.sample import Sample
from fastslow.tools.tune.speculation import TuneResult

NGRAM = Speculation(drafter="ngram", nodes=2)
LONG = Speculation(drafter="ngram", nodes=8)
SELF = Speculation(drafter="self", nodes=4)
FREE = NGRAM.model_copy(update={"nodes": None})
EVIL = '<script>alert("x")</script> & <b>'
VOID = {"meta", "br"}


def drafted(part: int, forwards: int, seconds: float, shares: tuple[float, ...]) -> Sample:
    return sample(
        part,
        forwards=forwards,
        seconds=seconds,
        steps=forwards + 1,
        drafted=80,
        accepted=101 - forwards,
        acceptance=tuple((share, 80) for share in shares),
    )


@pytest.fixture
def found() -> TuneResult:
    """Plain decoding has 10 tokens/s, ngram · 2 has 15, ngram · 8 has 8."""
    samples = {
        PLAIN: [sample(part) for part in range(4)],
        NGRAM: [drafted(part, 50, 100 / 15, (0.8, 0.4)) for part in range(4)],
        LONG: [drafted(0, 40, 100 / 8, (0.8, 0.4, 0.2, 0.1, 0, 0, 0, 0))],
        SELF: [drafted(part, 40, 100 / 11, (0.9, 0.7, 0.5, 0.3)) for part in range(2)],
        FREE: [drafted(part, 45, 100 / 14, (0.9,)) for part in range(4)],
    }
    return TuneResult(
        model="tiny <1>",
        batch=1,
        mode="deep",
        prompts=4,
        sampling=SamplingParams(max_tokens=101),
        best=NGRAM,
        samples=samples,
        finalists=[NGRAM, FREE],
        seconds=90.0,
        circumstances={
            "command": ["fastslow", "tune", EVIL],
            "versions": {"fastslow": "1"},
            "machine": {"processor": "one"},
        },
    )


class Reader(HTMLParser):
    """Fails on an element that is closed wrongly; keeps what there is."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


def words_of(found: TuneResult) -> str:
    return Reader(found.page()).words


def test_the_page_holds_what_people_want_to_know(found: TuneResult) -> None:
    read = Reader(found.page("mine.json"))
    assert read.seen.count("svg") == 1
    assert read.seen.count("tr") == 1 + 5 == 1 + found.table().row_count
    for words in (
        "drafting up to 2 tokens a step with ngram is 1.50 times as fast",
        "15.0 instead of 10.0 tokens/s",
        "Tokens a second by draft length",
        "plain: break-even",
        "ngram · adaptive",
        'speculation="mine.json"',
    ):
        assert words in read.words
    rows = read.words[read.words.index("x plain") :]
    names = ("ngram · 2", "ngram · adaptive", "self · 4", "ngram · 8")
    assert min(rows.index(name) for name in names) == rows.index("ngram · 2"), "the winner first"


def test_the_page_needs_no_network_and_runs_no_script(found: TuneResult) -> None:
    html = found.page()
    read = Reader(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(read.seen)
    assert not {"src", "href", "srcset", "data", "action"} & {name for name, _ in read.attributes}
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "url(" not in html and "@import" not in html and not re.findall(r"https?:", html)
    assert "prefers-color-scheme: dark" in html


def test_all_that_is_shown_is_escaped(found: TuneResult) -> None:
    assert EVIL not in found.page()
    words = words_of(found)
    assert words.count(EVIL) == 1  # the command
    assert 'LLM("tiny <1>")' in words


def picture_of(html: str) -> ElementTree.Element:
    """The chart; a parser refuses one that is not well formed."""
    picture = html[html.index("<svg") : html.index("</svg>") + len("</svg>")]
    numbers = re.findall(r'\s(?:x|y|cx|cy|x1|x2|y1|y2|width|height)="([^"]*)"', picture)
    assert all(-100 <= float(number) <= 900 for number in numbers)
    return ElementTree.fromstring(picture)


def test_faster_is_higher(found: TuneResult) -> None:
    root = picture_of(found.page())
    assert root.find("title") is not None
    high = {dot.findtext("title"): float(dot.attrib["cy"]) for dot in root.iter("circle")}
    line = next(float(e.attrib["y1"]) for e in root.iter("line") if e.attrib["class"] == "level")
    assert set(high) == {"ngram: 15", "ngram: 8", "ngram: 14", "self: 11"}
    assert high["ngram: 15"] < high["ngram: 14"] < high["self: 11"] < line < high["ngram: 8"]


def test_a_search_that_was_stopped_says_so(found: TuneResult) -> None:
    found.stopped, found.best = True, PLAIN
    found.samples = {PLAIN: [sample(0)], NGRAM: []}
    assert "stopped early" in words_of(found)
    assert "none of 0 drafting settings is faster than plain decoding" in found.headline()


def test_other_work_on_the_machine_is_told(found: TuneResult) -> None:
    assert "Other programs took" not in found.page()
    found.samples[PLAIN] = [sample(part, others=0.4) for part in range(4)]
    assert "Other programs took much of the machine in 4 of 4 runs" in found.page()
    found.samples[PLAIN] = [sample(part, others=0.01) for part in range(4)]
    assert "Other programs took" not in found.page()


def test_adaptive_is_said_in_words(found: TuneResult) -> None:
    found.best = FREE
    assert "drafting with ngram, as far as pays, is 1.40 times as fast" in found.headline()


@pytest.mark.parametrize(
    ("top", "marks"),
    [
        (100, [0, 20, 40, 60, 80, 100]),
        (0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (61, [0, 20, 40, 60, 80]),
        (0, [0, 1]),
        (float("nan"), [0, 1]),
    ],
)
def test_ticks_are_round_and_reach_the_top(top: float, marks: list[float]) -> None:
    assert ticks(top) == pytest.approx(marks)


def test_a_chart_of_one_point_has_its_place() -> None:
    chart = Chart("t", "x", "y", [ChartLine("a", [(0, 5.0)])], ["1"], (2.0, "level"))
    assert 62 < chart.x(0) < 704 and chart.y(5.0) < chart.y(2.0)


def test_a_row_says_what_it_rests_on(found: TuneResult) -> None:
    """Two runs are too few to tell, and nothing stands above the setting to use."""
    found.samples[SELF] = [drafted(part, 40, 100 / 30, (0.9,)) for part in range(2)]
    assert "dropped out: faster in these runs, which are too few to tell" in words_of(found)
    found.best, found.finalists = FREE, [NGRAM, FREE]
    assert "within 2%: the adaptive length is taken" in words_of(found)

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from tune_tools import sample

from fastslow.engine.params import SamplingParams, Speculation
from fastslow.tools.report.page import render
from fastslow.tools.report.plot import Plot, Point, Series, ticks
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.sample import Cell, Sample
from fastslow.tools.tune.speculation import Answer, Token, TuneResult
from fastslow.tools.tune.speculation_report import (
    Palette,
    acceptance_chart,
    batch_chart,
    headline,
    length_chart,
    page,
)

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
        rows=forwards + 80,
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
    sizes = {
        Cell(setting, batch): [sample(0, seconds=seconds / batch, rows=100 * batch)]
        for batch in (1, 2, 4)
        for setting, seconds in ((PLAIN, 10.0), (NGRAM, 10 / 1.5))
    }
    tokens = [Token("Rain ", None), Token("falls ", "ngram"), Token(EVIL, "self")]
    return TuneResult(
        model="tiny <1>",
        batch=1,
        mode="deep",
        prompts=4,
        sampling=SamplingParams(max_tokens=101),
        best=NGRAM,
        samples=samples,
        finalists=[NGRAM, FREE],
        sizes=sizes,
        answers=[Answer(f"Why? {EVIL}", tokens, 1.5)],
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


def drawn(plot: Plot | None) -> str:
    """A chart as SVG, cut out of a page."""
    html = render("plan.html", title="", rates=plot, terms=None)
    return html[html.index("<svg") : html.index("</svg>") + len("</svg>")]


def test_the_report_holds_what_people_want_to_know(found: TuneResult) -> None:
    read = Reader(page(found, "mine.json"))
    assert read.seen.count("svg") == 4
    assert read.seen.count("tr") == 1 + 5
    for words in (
        "drafting up to 2 tokens a step with ngram is 1.50 times as fast",
        "15.0 instead of 10.0 tokens/s",
        "Acceptance by position",
        "Tokens per second by draft length",
        "plain: break-even",
        "What a step costs",
        "Batch size",
        "Sample answers",
        "ngram · adaptive",
        'speculation="mine.json"',
    ):
        assert words in read.words
    assert "Not measured" not in read.words


def test_the_report_needs_no_network_and_runs_no_script(found: TuneResult) -> None:
    html = page(found)
    read = Reader(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(read.seen)
    assert not {"src", "href", "srcset", "data", "action"} & {name for name, _ in read.attributes}
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert re.findall(r"https?:", html) == []
    assert "prefers-color-scheme: dark" in html


def test_all_that_is_shown_is_escaped(found: TuneResult) -> None:
    html = page(found)
    assert EVIL not in html
    assert "<b>" not in html.replace("<b>1.50 x</b>", "").split('class="answer"')[1]
    read = Reader(html)
    assert read.words.count(EVIL) == 3  # question, answer, command
    assert "tiny <1>" in read.words
    assert 'LLM("tiny <1>")' in read.words


def test_every_picture_is_well_formed(found: TuneResult) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page(found), re.DOTALL)
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.find("title") is not None
        numbers = re.findall(r'\s(?:x|y|cx|cy|x1|x2|y1|y2|width|height)="([^"]*)"', picture)
        assert all(-100 <= float(number) <= 900 for number in numbers)


def test_faster_is_higher(found: TuneResult) -> None:
    root = ElementTree.fromstring(drawn(length_chart(found, Palette(found))))
    heights = {}
    for dot in root.iter("circle"):
        note = dot.findtext("title") or ""
        heights[note.partition(":")[0]] = float(dot.attrib["cy"])
    line = next(float(e.attrib["y1"]) for e in root.iter("line") if e.attrib["class"] == "level")
    assert set(heights) == {"ngram · 2", "ngram · 8", "ngram · adaptive", "self · 4"}
    assert heights["ngram · 2"] < heights["ngram · adaptive"] < heights["self · 4"] < line
    assert line < heights["ngram · 8"]
    hollow = [d.findtext("title") for d in root.iter("circle") if "hollow" in d.attrib["class"]]
    assert [note.partition(":")[0] for note in hollow if note] == ["ngram · 8", "self · 4"]


def test_the_longest_drafts_tell_of_positions(found: TuneResult) -> None:
    picture = drawn(acceptance_chart(found, Palette(found)))
    assert "ngram · 8: 40% accepted up to 2" in picture
    assert "self · 4: 30% accepted up to 4" in picture
    assert picture.count("<circle") == 8 + 4


def test_a_legend_names_a_drafter_in_its_colour(found: TuneResult) -> None:
    html = page(found)
    keys = re.findall(r'<span class="key ([^"]*)"><i class="swatch"></i>([^<]*)</span>', html)
    assert len(keys) > 3
    assert all(re.fullmatch(r"[\w -]+", colour) and "(" not in name for colour, name in keys), keys


def test_bars_say_how_many_times_plain(found: TuneResult) -> None:
    picture = drawn(batch_chart(found, Palette(found)))
    assert picture.count("<rect") == 6
    assert picture.count("1.50 x") == 3
    assert "ngram · 2, batch 4: 60.0 tokens/s" in picture
    del found.sizes[Cell(NGRAM, 4)][:]  # stopped before it ran
    assert drawn(batch_chart(found, Palette(found))).count("<rect") == 5


def test_drafted_words_have_the_colour_of_their_drafter(found: TuneResult) -> None:
    tokens = [Token("a", None), Token("b", "ngram"), Token("c", "ngram"), Token("d", "self")]
    found.answers = [Answer("q" * 1000, tokens, 2.0)]
    html = page(found)
    assert 'a<mark class="c1" title="drafted by ngram">bc</mark>' in html
    assert '<mark class="c2" title="drafted by self">d</mark>' in html
    assert "q" * 400 + " ..." in html
    assert "q" * 401 not in html


def test_a_search_that_was_stopped_says_what_it_lacks(found: TuneResult) -> None:
    found.stopped, found.best, found.sizes, found.answers = True, PLAIN, {}, []
    found.samples = {PLAIN: [sample(0)], NGRAM: []}
    read = Reader(page(found))
    assert "stopped early" in read.words
    assert read.words.count("Not measured.") == 4
    assert "none of 0 drafting settings is faster than plain decoding" in headline(found)


def test_other_work_on_the_machine_is_told(found: TuneResult) -> None:
    assert "Other programs took" not in page(found)
    found.samples[PLAIN] = [sample(part, others=0.4) for part in range(4)]
    assert "Other programs took much of the machine in 4 of 4 runs" in page(found)
    found.samples[PLAIN] = [sample(part, others=0.01) for part in range(4)]
    assert "Other programs took" not in page(found)


def test_adaptive_is_said_in_words(found: TuneResult) -> None:
    found.best = FREE
    assert "drafting with ngram, as far as pays, is 1.40 times as fast" in headline(found)


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


def test_a_picture_of_one_point_is_a_picture() -> None:
    plot = Plot("t", "x", "y", (1, 1), 5, [(1, "1")])
    plot.series.append(Series(1, [Point(1, 5, "n")]))
    root = ElementTree.fromstring(drawn(plot))
    assert len(list(root.iter("circle"))) == 1
    assert list(root.iter("polyline")) == []


def test_a_grey_row_says_what_it_rests_on(found: TuneResult) -> None:
    """Of two runs nobody can tell, and nothing stands above what is to be used."""
    found.samples[SELF] = [drafted(part, 40, 100 / 30, (0.9,)) for part in range(2)]
    found.samples[LONG] = found.samples[LONG][:1]
    read = Reader(page(found))
    table = read.words[read.words.index("x plain") :]
    names = ("ngram · 2", "ngram · adaptive", "self · 4", "ngram · 8")
    assert min(table.index(name) for name in names) == table.index("ngram · 2"), "the winner first"
    assert "self · 4out after 2 of 4 runs: faster in these, which are too few to tell" in table
    assert "ngram · 8out after 1 of 4 runs" in table
    found.best, found.finalists = FREE, [NGRAM, FREE]
    words = Reader(page(found)).words
    assert "within 2%: the adaptive length is taken" in words

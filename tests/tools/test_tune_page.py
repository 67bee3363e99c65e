"""The page of `fastslow tune`."""

import re
from html import unescape
from pathlib import Path

import pytest
from browser import IN_CHROMIUM, appear, browser
from tune_tools import sample

from fastslow.engine.params import SamplingParams, Speculation
from fastslow.tools.cli.screen import show
from fastslow.tools.tune.candidates import PLAIN, label
from fastslow.tools.tune.sample import Sample
from fastslow.tools.tune.speculation import COLUMNS, TuneResult

NGRAM = Speculation(drafter="ngram", nodes=2)
LONG = Speculation(drafter="ngram", nodes=8)
SELF = Speculation(drafter="self", nodes=4)
FREE = NGRAM.model_copy(update={"nodes": None})
EVIL = '<script>alert("x")</script> & <b>'


def drafted(part: int, forwards: int, rate: float) -> Sample:
    counts = {"steps": forwards + 1, "drafted": 80, "accepted": 101 - forwards}
    return sample(part, forwards=forwards, seconds=100 / rate, **counts)


@pytest.fixture
def found() -> TuneResult:
    """Plain decoding has 10 tokens/s, ngram · 2 has 15, ngram · 8 has 8."""
    return TuneResult(
        model="tiny <1>", batch=1, mode="deep", prompts=4, sampling=SamplingParams(max_tokens=101), best=NGRAM,
        samples={
            PLAIN: [sample(part) for part in range(4)], NGRAM: [drafted(part, 50, 15) for part in range(4)],
            LONG: [drafted(0, 40, 8)], SELF: [drafted(part, 40, 11) for part in range(2)],
            FREE: [drafted(part, 45, 14) for part in range(4)],
        },
        finalists=[NGRAM, FREE], seconds=90.0,
        circumstances={"command": [EVIL], "versions": {"fastslow": "1"}, "machine": {"processor": "one"}},
    )  # fmt: skip


def words_of(page: str) -> str:
    """The words that a reader sees."""
    return unescape(re.sub(r"<[^>]*>", "", page))


def test_the_page_holds_what_people_want_to_know_and_runs_no_script(found: TuneResult) -> None:
    page = found.page("mine.json")
    assert page.count("<tr") == 1 + 5 == 1 + found.table().row_count
    for words in (
        "drafting up to 2 tokens a step with ngram is 1.50 times as fast", "15.0 instead of 10.0 tokens/s",
        'speculation="mine.json"', 'LLM("tiny <1>")', EVIL,
    ):  # fmt: skip
        assert words in words_of(page), words
    rows = words_of(page).partition("x plain")[2]
    names = ("ngram · 2", "ngram · adaptive", "self · 4", "ngram · 8")
    assert min(rows.index(name) for name in names) == rows.index("ngram · 2"), "the winner first"
    html = found.page()
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(re.findall(r"<(\w+)", html))
    assert not re.findall(r"<[^>]* (src|href|srcset|data|action|on\w+)=", html)
    assert "url(" not in html and "@import" not in html and not re.findall(r"https?:", html)
    assert EVIL not in html


def test_words_of_a_piped_table_are_whole_and_figures_have_titles(
    found: TuneResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show(found.table())
    said = capsys.readouterr().out
    for words in (*COLUMNS, "ngram · adaptive", "dropped out, cannot pay"):
        assert words in said
    assert re.findall(r'<td title="([^"]*)"', found.page()) == list(COLUMNS) * 5


@pytest.mark.slow
@IN_CHROMIUM
def test_nothing_scrolls_sideways(found: TuneResult, tmp_path: Path) -> None:
    found.step_costs = {1: 1.2, 4: 1.6, 16: 3.1}
    page = tmp_path / "tuned.html"
    page.write_text(found.page(), "utf-8")
    with browser(tmp_path / "profile") as window:
        window.get(page.as_uri())
        every = "[...document.querySelectorAll('html, section, table, pre, td, dd')]"
        wide = f"return {every}.filter(n => n.scrollWidth > n.clientWidth).map(n => n.textContent)"
        for width in (320, 375, 700, 980, 1280):
            appear(window, width, 720, "light")
            assert window.execute_script(wide) == [], width


def test_faster_is_longer(found: TuneResult) -> None:
    bars = [int(value) for value in re.findall(r'<i style="width: (\d+)%"', found.page())]
    order = [label(setting) for setting in found.measured]
    expected = {"ngram · 2": 100, "ngram · adaptive": 93, "self · 4": 73, "plain": 67}
    assert {name: bars[order.index(name)] for name in expected} == expected


def test_what_a_reader_should_know_is_said(found: TuneResult) -> None:
    """Other work, too few runs, ties, an early stop."""
    assert "Other programs took" not in found.page()
    found.samples[SELF] = [drafted(part, 40, 30) for part in range(2)]
    assert "dropped out" in words_of(found.page())
    found.best, found.finalists = FREE, [NGRAM, FREE]
    assert "not surely faster" in words_of(found.page())
    assert "drafting with ngram, as far as pays, is 1.40 times as fast" in found.headline()
    found.stopped, found.best = True, PLAIN
    found.samples = {PLAIN: [sample(part, others=0.4) for part in range(4)], NGRAM: []}
    words = words_of(found.page())
    assert "stopped early" in words and "Other programs took much of the machine in 4 of 4 runs" in words
    assert "none of 0 drafting settings is surely faster than plain decoding" in found.headline()


def test_it_says_what_rows_cost_and_what_a_slow_drafter_would_need(found: TuneResult) -> None:
    found.step_costs = {1: 1.2, 4: 1.6}
    assert "1 drafted: 1.20 x (20% accepted), 4 drafted: 1.60 x (15% accepted)" in words_of(found.page())
    assert found._note(LONG) == "dropped out, cannot pay", "all accepted would not be enough"
    found.samples[LONG] = [drafted(0, 40, 9.5)]
    assert "pays from 85% accepted" in words_of(found.page())
    assert "pays" not in found._note(NGRAM), "it does"

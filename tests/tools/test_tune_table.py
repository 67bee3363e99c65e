"""The table and the sentences of `fastslow tune`."""

import pytest
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
        seconds=90.0,
        circumstances={"command": [EVIL], "versions": {"fastslow": "1"}, "machine": {"processor": "one"}},
    )  # fmt: skip


def test_words_of_a_piped_table_are_whole_and_figures_have_titles(
    found: TuneResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show(found.table())
    said = capsys.readouterr().out
    for words in (*COLUMNS, "ngram · adaptive"):
        assert words in said
    order = [label(setting) for setting in found.measured]
    assert order[0] == "ngram · 2" and sorted(order) == sorted(map(label, found.samples))
    said = found.headline()
    assert "drafting up to 2 tokens a step with ngram is 1.50 times as fast" in said
    assert "15.0 instead of 10.0 tokens/s" in said and "Other programs" not in said


def test_what_a_reader_should_know_is_said(found: TuneResult) -> None:
    """Other work, too few runs, ties."""
    found.samples[SELF] = [drafted(part, 40, 30) for part in range(2)]
    found.best = FREE
    assert found._row(NGRAM)[-1] == "not surely faster" and not found._row(LONG)[-1]
    assert "drafting with ngram, as far as pays, is 1.40 times as fast" in found.headline()
    found.stopped, found.best = True, PLAIN
    found.samples = {PLAIN: [sample(part, others=0.4) for part in range(4)], NGRAM: []}
    words = found.headline()
    assert "Other programs took much of the machine in 4 of 4 runs" in words
    assert "none of 0 drafting settings is surely faster than plain decoding" in words

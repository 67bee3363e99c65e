import itertools
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_dense
from cli_tools import call, printed, run
from tune_tools import write_prompts

from fastslow import LLM, Output, SamplingParams, Speculation
from fastslow.engine.host import machine as watch_module
from fastslow.engine.host.machine import Watch
from fastslow.engine.host.progress import silent
from fastslow.settings import read_settings
from fastslow.tools.prompts import Conversation, read_prompts
from fastslow.tools.tune import sample, search
from fastslow.tools.tune.candidates import PLAIN, default_drafters, label
from fastslow.tools.tune.runner import Grid, TuneRunner
from fastslow.tools.tune.sample import Cell
from fastslow.tools.tune.speculation import tune_speculation

pytest_plugins = ("tiny_models",)

NGRAM = Speculation(drafter="ngram", nodes=3)
FEW = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny, kv_memory="64MiB") as model:
        yield model


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "mine.jsonl")


@pytest.fixture
def prompts(questions: Path) -> list[Conversation]:
    return read_prompts(questions)


def test_prompts_are_read_before_the_clock_runs(llm: LLM) -> None:
    """By a drafter that looks at text each time for itself: its figures would else be those of one that
    never saw them."""
    prompt: Conversation = [{"role": "user", "content": "A prompt that nobody asked. " * 12}]
    found: list[tuple[str, bool]] = []

    class Watched(TuneRunner):
        def _answer(self, cell: Cell, prompts: Sequence[Conversation], sampling: SamplingParams) -> list[Output]:
            outputs = super()._answer(cell, prompts, sampling)
            cached = outputs[0].metrics.cached_tokens
            if sampling.max_tokens == 1:
                found.append((cell.setting.drafter, not cached))
            else:
                assert cached > 100
            return outputs

    runner, auto = Watched(llm, FEW), Speculation(drafter="auto")
    for setting in (PLAIN, NGRAM, auto, PLAIN, auto):
        runner.run(Cell(setting), [prompt], 0, 0)
    assert found == list(zip(("off", "ngram", "auto", "off", "auto"), (True, False, True, False, True)))


def test_time_on_the_processors_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, own = tmp_path / "stat", tmp_path / "own"
    monkeypatch.setattr(watch_module, "STAT", stat)
    monkeypatch.setattr(watch_module, "OWN", own)
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def ticks(user: int, idle: int, steal: int, mine: int) -> None:
        stat.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3\n")
        own.write_text(f"7 (a) name) S {' '.join('0' * 10)} {mine} 20 0 0\n")

    ticks(user=1000, idle=500, steal=0, mine=30)
    watch = Watch()
    assert watch.others() is None  # no time has gone by
    ticks(user=1100, idle=560, steal=40, mine=80)
    assert watch.others() == (140 - 50) / 200
    ticks(user=1020, idle=520, steal=0, mine=40)
    assert watch.others() is None  # too soon to tell
    stat.unlink()
    assert Watch().others() is None


def test_drafters_are_those_that_the_model_takes(llm: LLM, tmp_path: Path) -> None:
    assert [s.drafter for s in default_drafters(llm)] == ["suffix", "ngram", "self", "suffix|self"]
    write_dense(tmp_path)
    with LLM(tmp_path, kv_memory="16MiB") as dense:
        assert [s.drafter for s in default_drafters(dense)] == ["suffix", "ngram"]


def test_a_grid_runs_every_cell_once_a_round_and_refuses_what_does_not_fit(
    llm: LLM, prompts: list[Conversation]
) -> None:
    grid = Grid([NGRAM], batches=(1, 2), modes=("deep", "fast"))
    grid.measure(TuneRunner(llm, FEW), prompts[:5], repeat=2)
    assert len(grid.samples) == 2 * 2 * 2
    for cell, samples in grid.samples.items():
        assert [(s.turn, s.part) for s in samples] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert {s.answered for s in samples} == {24}  # the fifth prompt is left out
        assert grid.ratio(cell) == 1.0 or cell.setting == NGRAM
    record = grid.record()
    json.dumps(record, allow_nan=False)
    assert {entry["label"] for entry in record} == {"plain", "ngram · 3"}
    with pytest.raises(ValueError, match="batch sizes 2, 5 need at least 10 prompts; there are 8"):
        Grid([NGRAM], batches=(2, 5)).measure(TuneRunner(llm, FEW), prompts, 1)


@pytest.fixture
def deaf() -> Iterator[None]:
    """To SIGTERM, which else would end the tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate_after(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count, real = itertools.count(), TuneRunner.run

    def counted(self: TuneRunner, *arguments: object) -> object:
        if next(count) >= runs:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TuneRunner, "run", counted)


def test_tuning_refuses_what_does_not_fit(llm: LLM, prompts: list[Conversation]) -> None:
    long: Conversation = [{"role": "user", "content": "word " * 600}]
    cases: tuple[tuple[list[Conversation], dict[str, Any], str], ...] = (
        (prompts, {"batch": 9}, "batch=9 is outside 1..8, the number of prompts"),
        (prompts, {"mode": "dep"}, "mode='dep' is unknown"),
        ([*prompts[:3], long], {}, "prompt 4: prompt has .* must fit the context of 512"),
        (prompts[:1], {"sampling": SamplingParams(max_tokens=1)}, "ended at its first token"),
    )
    for some, options, said in cases:
        given: dict[str, Any] = {"sampling": FEW, "minutes": 0.2, "report": silent, **options}
        with pytest.raises(ValueError, match=said):
            tune_speculation(llm, "tiny", some, [NGRAM], **given)


def test_bench_shows_and_writes(tiny: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ("--drafters", "ngram,self", "--lengths", "0,2", "--batch", "1,2", "--tokens", 8)
    files = ("--model", tiny, "--prompts", questions, "-o", out)
    shown = printed("bench", *files, *options, "--limit", 4, "--repeat", 1)
    for word in ("ngram", "self", "plain", "tokens/s", "x plain", "accepted"):
        assert word in shown
    found = json.loads(out.read_text("utf-8"))
    assert len(found["cells"]) == 2 * 3 and found["prompts"] == 4
    assert {"command", "versions", "machine"} <= set(found)
    first = found["cells"][0]
    assert (first["label"], first["ratio"]) == ("plain", 1.0)
    assert {"tokens", "seconds", "others"} <= set(first["samples"][0])


@pytest.mark.parametrize(("runs", "carried"), [(None, True), (40, True), (5, False)])
def test_tune_writes_both_files(
    tiny: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: int | None,
    carried: bool,
    deaf: None,
) -> None:
    """Stopped by SIGTERM it does so, too, and exits with 130; but not where the runs carry no verdict."""
    if runs is not None:
        terminate_after(runs, monkeypatch)
    monkeypatch.setattr(sample, "CLIP", 1e9)  # no run counts as disturbed
    monkeypatch.setattr(sample, "CONTENDED", 1.0)
    monkeypatch.setattr(search, "LOSS", 1e9)  # nor do they scatter too much
    out = tmp_path / "tuned.json"
    options = ("--lengths", "1,3", "--tokens", 8, "--minutes", 1, "--limit", 2 if runs else 1)
    done = call("tune", tiny, *("--prompts", questions, "-o", out), *options)
    assert done.code == (0 if runs is None else 130) and "8 of 8 settings fit into the time" in done.err
    assert ("No verdict: the runs are fewer than 3" in done.out) == (not carried)
    assert out.exists() == carried
    if carried:
        measured = json.loads(out.read_text("utf-8"))["measured"]
        assert measured["stopped_early"] == (runs is not None)
        assert label(read_settings(out)) in measured["settings"]


@pytest.mark.parametrize("kind", [(), ("--groups",)])
def test_beside_other_programs_there_is_no_verdict(
    tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str]
) -> None:
    """Steps that take the same time do not help: they are slow together. Runs too short to tell take what was found of
    the time around them."""
    shares = itertools.cycle((0.4, None))
    monkeypatch.setattr(Watch, "others", lambda _: next(shares) if not kind else 0.4)
    monkeypatch.setattr(search, "LOSS", 1e9)
    monkeypatch.setattr(sample, "CLIP", 1e9)
    out = tmp_path / "tuned.json"
    options = ("--drafters", "ngram", "--lengths", "1", "--tokens", 8, "--limit", 1, *kind)
    done = call("tune", tiny, "--prompts", questions, "-o", out, *options)
    assert done.code == 1 and not out.exists()
    said = "took 40% of the machine" if kind else "other programs took much of the machine in "
    assert said in done.out and "No file is written" in done.out


def test_without_a_verdict_the_exit_code_says_so(
    tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "CLIP", 1.0)  # whatever differs from the median was disturbed
    out = tmp_path / "tuned.json"
    options = ("--drafters", "ngram", "--lengths", "1", "--tokens", 8, "--limit", 1, "-o", out)
    assert run("tune", tiny, "--prompts", questions, *options) == 1 and not out.exists()
    assert run("tune", tiny, "--prompts", questions, *options, "--minutes", 0.00001) == 2


@pytest.mark.parametrize(("command", "options", "said"), [
    ("tune", ("--keep", "nan"), "keep=nan must be a finite number"),
    ("tune", ("-o", "nowhere/tuned.json"), "'nowhere/tuned.json' cannot be written"),
    ("bench", ("-o", "."), "'.' cannot be written"),
    ("bench", ("--lengths", "many"), "'many' is neither a number"),
    ("bench", ("--lengths", "0"), "leave nothing but plain decoding"),
    ("bench", ("--batch", "1,x"), "batch: 'x' must be a whole number"),
    ("bench", ("--modes", ","), "modes=',' names nothing"),
    ("bench", ("--prompts", "none.jsonl"), "prompts file 'none.jsonl' cannot be read"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(
    tiny: Path, questions: Path, command: str, options: tuple[str, ...], said: str
) -> None:
    done = call(command, "--model", tiny, "--prompts", questions, *options)
    *_, last = done.err.splitlines()
    assert done.code == 2 and last.startswith("error: ") and said in last

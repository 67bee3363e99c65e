"""`fastslow tune --modes` and `--groups` from the command line, on a tiny model."""

import json
import re
from pathlib import Path

import pytest
from checkpoints import write_dense
from cli_tools import call, printed, write_lines
from pangu_v2_tools import write_moe
from tokenizers_tiny import write_bpe
from tune_tools import write_prompts

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode, SamplingParams
from fastslow.llm import LLM
from fastslow.tools.tune.groups import GroupsFound, GroupsRow, likeliest

pytest_plugins = ("tiny_models",)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    lines = [{"prompt": f"What is {n} + {n}?", "answer": 2 * n} for n in range(24)]
    return write_lines(tmp_path / "graded.jsonl", *lines)


def test_modes(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    given = ("--modes", "--tasks", tasks, "--model", tiny, "--tokens", 4, "--batch", 4)
    assert "On 24 tasks" in printed("tune", *given, "-o", out, "--kv-memory", "4MiB")
    kept = json.loads(out.read_text("utf-8"))
    assert kept["auto"]["between"] == ["fast", "deep"]
    measured = kept["measured_modes"]
    assert measured["tasks"] == 24 and measured["grading"] == {"number": 24}
    assert measured["figures"]["deep"]["seconds"] > 0
    with LLM(tiny, auto=out, modes=str(out), kv_memory="4MiB", progress=False) as llm:
        metrics = llm.chat("What is 3 + 3?", SamplingParams(max_tokens=2), mode="auto", speculation="off").metrics
        assert metrics.decision.startswith(f"{metrics.mode}: ")


FITTED = {"auto": {}, "measured_modes": {"tasks": 9}}


@pytest.fixture(autouse=True)
def whatever_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not depend on other programs."""
    monkeypatch.setattr("fastslow.tools.tune.groups.CONTENDED", 1.0)


@pytest.mark.parametrize("noun", ["groups", "experts"])
def test_groups(noun: str, tiny: Path, tmp_path: Path) -> None:
    """Or experts, of a model without groups."""
    model, out = tiny, tmp_path / "tuned.json"
    if noun == "experts":
        model = tmp_path / "model"
        write_bpe(model, None, 320)
        write_moe(model, vocab_size=320, num_hidden_layers=2)
    out.write_text(json.dumps({"version": 1, "speculation": {"drafter": "off"}} | FITTED), "utf-8")
    given = (f"--{noun}", "--prompts", write_prompts(tmp_path / "p.jsonl"), "--model", model)
    few = ("--limit", 3, "--tokens", 6, "--keep", 0.3, "-o", out, "--kv-memory", "4MiB")
    said = " ".join(printed("tune", *given, *few).split())
    assert "token places, which is few" in said or "no smaller number" in said
    assert f" {noun}" in said and (" groups" in said) == (noun == "groups")
    kept = json.loads(out.read_text("utf-8"))
    assert kept["speculation"] == {"drafter": "off"}, "what was there stays"
    rows, proposed = kept[f"measured_{noun}"][noun], kept["modes"]["fast"][noun]
    most = len(rows) - 1
    changed = proposed != len(rows) // 4  # of what fast runs by itself
    assert ("measured_modes" in kept, "was fitted to a fast mode" in said) == (not changed, changed)
    assert rows[0]["agreement"] < rows[-1]["agreement"] == 1.0
    assert [row[noun] for row in rows] == list(range(most + 1)) and all(row["seconds"] > 0 for row in rows)
    with LLM(model, modes=str(out), kv_memory="4MiB", progress=False) as llm:
        fast = llm.modes["fast"]
        assert fast.routed == (None if proposed == most else proposed)
        assert fast.thinking == "off", "other fields are the built-in ones"


@pytest.mark.parametrize(("arguments", "says"), [
    (["--modes"], "--tasks is missing"), (["--groups"], "--prompts is missing"), ([], "--prompts is missing"),
    (["--modes", "--groups"], "give one of them"), (["--modes", "--tasks", "absent.jsonl"], "cannot be read"),
    (["--modes", "--tasks", "few.jsonl"], "1 graded tasks are too few"),
])  # fmt: skip
def test_what_is_missing_is_told(
    arguments: list[str], says: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.jsonl").write_text('{"prompt": "x", "answer": 1}', "utf-8")
    done = call("tune", *arguments, "--model", tiny, "--kv-memory", "4MiB")
    assert done.code == 2 and says in done.err


def test_the_likeliest_tokens_of_a_greedy_answer_are_its_own(tiny: Path) -> None:
    with LLM(tiny, kv_memory="4MiB", speculation="off", progress=False) as llm:
        few = Mode(name="few", thinking="off", groups=1)
        out = llm.generate("one two three", SamplingParams(max_tokens=6), mode=few)
        text = [*out.prompt_token_ids, *out.token_ids]
        assert likeliest(llm, text, len(out.prompt_token_ids), few) == out.token_ids


def test_a_dense_model_has_no_groups(tmp_path: Path) -> None:
    write_bpe(tmp_path, None, 320)
    write_dense(tmp_path, vocab=320)
    prompts = write_prompts(tmp_path / "p.jsonl")
    out, small = tmp_path / "t.json", ("--kv-memory", "4MiB")
    done = call("tune", "--groups", "--prompts", prompts, "--model", tmp_path, "-o", out, *small)
    assert done.code == 2 and "is dense" in done.err


def found(*rows: tuple[float, float]) -> GroupsFound:
    made = [GroupsRow(n, agreement, s) for n, (agreement, s) in enumerate(rows)]
    return GroupsFound("m", RoutedUnits("groups", len(rows) - 1), made, 100, 4, keep=0.9)


def test_what_is_proposed() -> None:
    by_agreement = found((0.5, 1.0), (0.92, 1.5), (1.0, 2.0))
    assert by_agreement.proposed.count == 1 and by_agreement.table().row_count == 3
    assert by_agreement.headline().startswith("1 of 2 groups: the same next token at 92%")
    no_time = found((0.5, 1.0), (0.92, 1.99), (1.0, 2.0))
    assert no_time.proposed.count == 2 and "should run all 2" in no_time.headline()


def test_the_time_is_kept_and_what_fits_is_said(tiny: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    little = ("--tokens", 4, "--minutes", 0.0001, "--kv-memory", "4MiB", "-o", out)
    done = call("tune", tiny, "--groups", "--prompts", write_prompts(tmp_path / "p.jsonl"), *little)
    assert done.code == 0 and re.search(r"\d of 8 prompts fit into the time", done.err)
    assert json.loads(out.read_text("utf-8"))["measured_groups"]["prompts"] < 8
    done = call("tune", tiny, "--modes", "--tasks", tasks, *little)
    assert done.code == 2 and re.search(r"\d of 24 tasks fit into the time", done.err)
    assert "tasks were answered in time; 20 are needed" in done.err

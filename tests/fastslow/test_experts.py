"""`Mode(experts=...)`: what a call may ask for, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_family
from gate import open_llm
from pangu_v2_tools import write_moe
from tokenizers_tiny import write_bpe

from fastslow import LLM, Escalation, Mode, SamplingParams, Speculation
from fastslow.tools.cli.app import main

VOCAB, CHOSEN = 320, 4
PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)
TEXTS = ("one two three two one", "four two four two")
OWN = Speculation(drafter="self", experts=1, nodes=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experts")
    write_bpe(path, None, VOCAB)
    return write_moe(path, vocab_size=VOCAB, num_experts_per_tok=CHOSEN, num_hidden_layers=2)


def experts(count: int | None) -> Mode:
    return Mode(experts=count, thinking="off")


def test_a_count_for_each_request_of_a_batch(llm: LLM) -> None:
    counts = [None, 0, 1, 2, 3, 4]
    plain = {c: llm.generate(TEXTS[0], PARAMS, mode=experts(c), speculation="off") for c in counts}
    assert plain[4].token_ids == plain[None].token_ids, "as many as the router chooses"
    assert len({tuple(out.token_ids) for out in plain.values()}) == 5
    handles = [llm.submit(TEXTS[0], PARAMS, mode=experts(c), speculation=OWN) for c in counts]
    for count, handle in zip(counts, handles, strict=True):
        out = handle.result()
        assert out.token_ids == plain[count].token_ids, count
        assert out.metrics.drafted > 0 and out.metrics.experts == (CHOSEN if count is None else count)
        assert out.metrics.groups is None


@pytest.mark.drafts(60, 10)
@pytest.mark.parametrize("how", ["recompute", "restart", "keep"])
def test_an_answer_continues_with_more_experts(llm: LLM, how: str) -> None:
    unsure = Escalation(below=1, window=2, to="deep", how=how)  # type: ignore[arg-type]
    mode = Mode(base="fast", escalate=unsure)
    out = llm.generate(TEXTS[0], PARAMS, mode=mode, speculation=OWN)
    fast, deep = (llm.generate(TEXTS[0], PARAMS, mode=mode) for mode in ("fast", "deep"))
    plain = llm.generate(TEXTS[0], PARAMS, mode=mode, speculation="off")
    assert out.metrics.escalated_at == 2 and out.metrics.experts == CHOSEN and out.token_ids == plain.token_ids
    if how == "restart":
        assert out.token_ids == deep.token_ids
    else:
        assert out.token_ids[:2] == fast.token_ids[:2]
    if how == "recompute":
        text = [*out.prompt_token_ids, *out.token_ids[:2]]
        rest = SamplingParams(max_tokens=18, ignore_eos=True)
        assert out.token_ids[2:] == llm.generate(text, rest, mode="deep").token_ids


@pytest.mark.parametrize(("fields", "says"), [
    ({"experts": 5}, r"^speculation experts=5 is outside 0\.\.4$"),
    ({"groups": 2}, r"^speculation groups=2 must be left out: .* experts"),
    ({"groups": 2, "experts": 2}, r"^groups=2 and experts=2 are both given"),
])  # fmt: skip
def test_counts_of_a_drafter_that_do_not_fit(llm: LLM, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        llm.generate(TEXTS[0], PARAMS, speculation={"drafter": "self", **fields})


def test_drafter_self_runs_shared_experts_alone_by_default(llm: LLM) -> None:
    plain = llm.generate(list(TEXTS), PARAMS, speculation="off")
    # without nodes it drafts what pays, which on a busy machine may be nothing
    own: dict[str, Any] = {"drafter": "self", "nodes": 3}
    for wish in (own, OWN, {**own, "experts": 0, "width": 3}):
        drafted = llm.generate(list(TEXTS), PARAMS, speculation=wish)
        assert [o.token_ids for o in drafted] == [o.token_ids for o in plain]
        assert sum(o.metrics.drafted for o in drafted) > 0
    drafters = llm._drafters.made.values()
    assert {getattr(d, "_groups", None) for d in drafters} >= {0, 1}


def test_a_file_of_modes_and_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"modes": {"fast": {"experts": 3}, "bot": {"base": "fast"}}}))
    with open_llm(folder, modes=own) as llm:
        out = llm.generate(TEXTS[0], PARAMS, mode="bot")
        assert out.metrics.experts == 3
        assert llm.generate(TEXTS[0], PARAMS, mode=experts(3)).token_ids == out.token_ids
    given = ["--experts", "1", "--drafter", "self", "--draft-experts", "1", "--max-tokens", "4"]
    command = ["generate", "Hello", "--model", str(folder), "--modes", str(own), "--mode", "bot"]
    with pytest.raises(SystemExit, match="^0$"):
        main([*command, *given, "--kv-memory", "8MiB", "--json"])
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert (metrics["experts"], metrics["drafter"]) == (1, "self")


@pytest.mark.drafts(50, 30)
def test_without_shared_experts_one_is_the_fewest(tmp_path: Path) -> None:
    write_bpe(tmp_path, None, VOCAB)
    write_family(tmp_path, "qwen3_moe", vocab=VOCAB, num_experts_per_tok=8)
    with open_llm(tmp_path) as llm:
        plain = llm.generate(list(TEXTS), PARAMS, mode=experts(1), speculation="off")
        drafted = llm.generate(list(TEXTS), PARAMS, mode=experts(1), speculation="self")
        assert [o.token_ids for o in drafted] == [o.token_ids for o in plain]
        assert llm.generate(TEXTS[0], PARAMS, speculation="self").metrics.experts == 8
        drafters = llm._drafters.made.values()
        assert 2 in [getattr(d, "_groups", None) for d in drafters], "a quarter of 8"
        assert llm.modes["fast"].experts == 4
        with pytest.raises(ValueError, match=r"^speculation experts=0 is outside 1\.\.8"):
            llm.generate(TEXTS[0], PARAMS, speculation={"drafter": "self", "experts": 0})

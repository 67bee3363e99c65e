"""Speculation as callers ask for it: heads, stored answers, what calls with other keys learn, advice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_dense
from eagle_tools import write_eagle
from gate import open_llm
from head_tools import tiny_weights
from safetensors.torch import save_file

from fastslow import LLM, Metrics, SamplingParams, Speculation, drafters
from fastslow.draft.head.config import fingerprint, read_metadata
from fastslow.draft.registry import DRAFTERS
from fastslow.drafters import own_head
from fastslow.request.choice import advice
from fastslow.tools.cli.app import app

VOCAB = 320
TEN = SamplingParams(max_tokens=10, ignore_eos=True)


@pytest.mark.parametrize("layout", ["original", "speculators"])
def test_a_published_head_drafts(folder: Path, tmp_path: Path, layout: str) -> None:
    head = write_eagle(tmp_path / "head", folder, layout, draft=200)
    other = write_eagle(tmp_path / "other", folder, layout, draft=200, vocab_size=VOCAB + 1)
    long = SamplingParams(max_tokens=40, ignore_eos=True)
    with open_llm(folder) as llm:
        plain = llm.generate("The quick", long, speculation="off").token_ids
        for name, width in (("head", 1), ("head", 3), ("suffix|head", 3), ("auto", 1)):
            wish = Speculation(drafter=name, head=head, width=width, nodes=4)
            out = llm.generate("The quick", long, speculation=wish)
            assert out.token_ids == plain and out.metrics.drafted > 0
        with pytest.raises(ValueError, match=f"^head {other}: .* vocab_size 321, this one has 320$"):
            llm.generate("The", TEN, speculation=Speculation(drafter="head", head=other))


@pytest.mark.drafts(30, 10, nodes=None)
def test_stored_answers_are_drafted_from(folder: Path, tmp_path: Path) -> None:
    answers, stored = tmp_path / "answers.jsonl", tmp_path / "corpus.safetensors"
    long = SamplingParams(max_tokens=40, ignore_eos=True)
    with open_llm(folder, remember=False) as llm:
        plain = llm.generate("The quick", long, speculation="off")
        answers.write_text(json.dumps({"text": plain.text}) + "\n", "utf-8")
        app(["corpus", "build", str(answers), "-o", str(stored), "--model", str(folder)], standalone_mode=False)
        wish = Speculation(drafter="suffix", corpus=stored, nodes=6)
        assert llm.generate("The quick", long, speculation=wish).token_ids == plain.token_ids
    stored.write_bytes(stored.read_bytes()[:-9])
    with open_llm(folder) as llm, pytest.raises(ValueError, match=r"corpus"):
        llm.generate("The", TEN, speculation=wish)


def test_a_call_learns_nothing_of_the_calls_with_other_keys(folder: Path) -> None:
    """The accepted part of a draft and the cached part of a prompt would tell what was said before."""
    long = SamplingParams(max_tokens=40, ignore_eos=True)
    prompt = list(range(10, 60))
    wish = Speculation(drafter="suffix", nodes=8)

    def ask(llm: LLM, key: str | None) -> tuple[int, int]:
        pieces = llm.stream(prompt, long, speculation=wish, memory_key=key)
        (out,) = [piece.output for piece in pieces if piece.output is not None]
        return out.metrics.accepted, out.metrics.cached_tokens

    for remember in (True, "by_key", False):
        with open_llm(folder, remember=remember) as llm:
            unseen, _ = ask(llm, "victim")
            assert ask(llm, "attacker") == (unseen, 0) and ask(llm, None) == (unseen, 0)
            known = unseen if remember is False else 35  # of 40 tokens, in steps of nine
            assert ask(llm, "victim") == (known, 48)
            assert ask(llm, None) == (35 if remember is True else unseen, 48)
            llm.forget_prompts()
            assert ask(llm, "victim") == ask(llm, None) == (unseen, 0)
            two = llm.generate([prompt, prompt], TEN, memory_key=["a", "victim"], progress=False)
            assert [out.metrics.cached_tokens for out in two] == [0, 48]


def test_a_head_is_bound_to_the_weights_that_it_was_trained_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the name of a folder, which says nothing."""
    named = tmp_path / "smollm2-moge-0123456789ab"
    shutil.copytree(folder, named)
    assert own_head(named) is None
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    config, weights = tiny_weights(named)
    path = shipped / "tiny.safetensors"
    both = f"0123456789abcdef {fingerprint(named)}"
    save_file(weights, path, config.metadata() | {"target": both})
    monkeypatch.setattr(drafters, "SHIPPED", shipped)
    assert own_head(named) == path
    assert own_head(write_dense(tmp_path / "smollm2-0123456789ab", hidden_size=32)) is None
    conv: dict[str, Any] = {
        "architectures": ["Lfm2ForCausalLM"],
        "layer_types": ["full_attention", "conv"],
        "rms_norm_eps": None,
    }
    kin = write_dense(tmp_path / "conv", hidden_size=config.hidden, block_multiple_of=16, **conv)
    assert own_head(kin) is None, "its last layer has no queries"
    (named / "draft_head.safetensors").write_bytes(b"")
    assert own_head(named) == named / "draft_head.safetensors", "its name of before"
    (named / "draft.head").write_bytes(b"")
    assert own_head(named) == named / "draft.head"


def test_every_builtin_model_of_the_table_has_a_head() -> None:
    shipped = drafters.SHIPPED / "smollm2.safetensors"
    assert len(read_metadata(shipped)["target"].split()) == 2, "smollm2 and smollm2-moge"
    assert shipped.stat().st_size < 10 << 20


GOOD = Metrics("deep", "suffix", 0.1, 0.01, 50, 50, 200, 100, 0, [2] * 50, 0.0, 0.5, [0.5], 0, 0)


def test_the_cause_of_drafts_that_are_hardly_accepted() -> None:
    for name in DRAFTERS:
        said = advice(replace(GOOD, drafter=name, accepted=1))
        assert said is not None and f"Probably {DRAFTERS[name].likely_cause}. Try" in said
    for name, causes in (("suffix|head", ["suffix", "head"]), ("auto", ["suffix"])):
        said = advice(replace(GOOD, drafter=name, accepted=0)) or ""
        assert "0 of 200" in said and all(DRAFTERS[one].likely_cause in said for one in causes)
    for few in (GOOD, replace(GOOD, drafted=50, accepted=0), replace(GOOD, drafted=0, accepted=0)):
        assert advice(few) is None

"""A fast answer that turns out unsure changes to another mode."""

from collections.abc import Iterator
from math import exp
from pathlib import Path
from typing import Any

import pytest
from engine_tools import PLENTY, Ask, Bench, OracleDraft, Setting, answer, finish, write_kin
from kernel_tools import wanted

from fastslow import LLM, Escalation, Mode, Output, SamplingParams, Speculation
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import EscalationState, EscalationTarget, Request
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.sampling.confidence import Confidence

NATIVE = pytest.mark.skipif(not wanted(), reason="no kernels")
DRAFTS = ["off", Speculation(drafter="ngram", nodes=6), Speculation(drafter="self", groups=3, nodes=3)]
QUESTIONS = ["one two one two one two", "tell me", "a b c a b c a b"]
DRAWN = {"temperature": 0.8, "seed": 5}
ROOM = 24


def open_llm(folder: Path, **options: Any) -> LLM:
    own = Speculation(drafter="self", groups=3, nodes=3)
    deep = {"deep": {"answer_room": None}}  # its room would depend on what came before
    return LLM(folder, kv_memory="4MiB", progress=False, speculation=own, modes=deep, **options)


@pytest.fixture(scope="module")
def llms(thinker: Path, request: pytest.FixtureRequest) -> Iterator[tuple[LLM, LLM]]:
    """An engine to ask, and one without a prefix cache that says what is right."""
    library.available.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "off":
            patch.setenv("FASTSLOW_KERNELS", "off")
        with open_llm(thinker) as llm, open_llm(thinker, prefix_caching=False) as judge:
            library.available.cache_clear()
            assert (llm.model.storage is KVStorage) == (request.param == "off")
            yield llm, judge


@pytest.fixture(scope="module")
def llm(thinker: Path) -> Iterator[LLM]:
    with open_llm(thinker) as llm:
        yield llm


def unsure(how: str, below: float = 0.7, window: int = 3, **fields: Any) -> Mode:
    settings = Escalation(below=below, window=window, how=how, **fields)  # type: ignore[arg-type]
    return Mode(name="fast", groups=1, thinking="off", escalate=settings)


def doubts(below: float, keep: bool) -> dict[str, Any]:
    """Of a request that leaves its mode."""
    settings = Escalation(below=below, window=2)
    target = EscalationTarget(Mode(name="deep"), keep=keep)
    return {"escalation": EscalationState(Confidence(settings), target)}


def sampling(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": ROOM, "ignore_eos": True, **fields})


@pytest.mark.drafts(20, 2, nodes=None)
@pytest.mark.parametrize(("llms", "draft", "drawn"), [
    ("off", DRAFTS[2], DRAWN),
    *(pytest.param("native", *one, marks=NATIVE) for one in zip(DRAFTS, (DRAWN, {}, DRAWN))),
], indirect=["llms"])  # fmt: skip
def test_recomputed_tokens_are_deeps_for_the_same_text(
    llms: tuple[LLM, LLM], draft: str | Speculation, drawn: dict[str, Any]
) -> None:
    llm, judge = llms
    fell = []
    for question in QUESTIONS:
        doubtful, fast = unsure("recompute", 0.5), Mode(groups=1, thinking="off")
        out = llm.chat(question, sampling(**drawn), mode=doubtful, speculation=draft)
        at = out.metrics.escalated_at
        before = judge.chat(question, sampling(logprobs=0, **drawn), mode=fast)
        assert at == first_fall(before, 0.5, 3), "with a draft and without"
        assert at is not None and 0 < at < ROOM and out.token_ids[:at] == before.token_ids[:at]
        text = [*out.prompt_token_ids, *out.token_ids[:at]]
        left = sampling(**{**drawn, "max_tokens": ROOM - at})
        assert out.token_ids[at:] == judge.generate(text, left, mode="deep").token_ids
        assert out.metrics.mode == "fast>deep" and f"deep from token {at}: confidence" in out.metrics.decision
        fell.append(out.token_ids[at:] != before.token_ids[at:])
    assert any(fell), "the switch changes something"


def first_fall(out: Output, below: float, window: int) -> int | None:
    assert out.logprobs is not None
    said = [table[x] for table, x in zip(out.logprobs, out.token_ids)]
    for end in range(window, len(said) + 1):
        if exp(sum(said[end - window : end]) / window) < below:
            return end
    return None


@pytest.mark.drafts(40, 4, nodes=None)
@pytest.mark.parametrize(
    ("llms", "how"), [("off", "recompute"), pytest.param("native", "keep", marks=NATIVE)], indirect=["llms"]
)
def test_no_page_is_shared_under_a_wrong_root(llms: tuple[LLM, LLM], how: str) -> None:
    llm, judge = llms
    out = llm.chat("one two three", sampling(max_tokens=60), mode=unsure(how, 0.9))
    assert out.metrics.escalated_at is not None and out.metrics.escalated_at < 20
    text = [*out.prompt_token_ids, *out.token_ids]
    for groups in (1, 0, 3, None):
        mode = Mode(groups=groups)
        # log-probabilities, not tokens: they tell of every row that was read
        found, right = (one.generate(text, sampling(max_tokens=4, logprobs=3), mode=mode) for one in (llm, judge))
        assert found.logprobs == right.logprobs, groups
    again = llm.generate(text, sampling(max_tokens=1), mode="deep")
    assert again.metrics.cached_tokens > 0, "pages under the right root are shared"


@pytest.mark.drafts(100, 10, nodes=None)
@pytest.mark.parametrize("llms", [pytest.param("native", marks=NATIVE)], indirect=True)
def test_kept_keys_are_those_of_the_first_mode(llms: tuple[LLM, LLM]) -> None:
    llm, _ = llms
    kept = [llm.chat(q, sampling(), mode=unsure("keep", 0.9)) for q in QUESTIONS]
    recomputed = [llm.chat(q, sampling(), mode=unsure("recompute", 0.9)) for q in QUESTIONS]
    assert [k.metrics.escalated_at for k in kept] == [r.metrics.escalated_at for r in recomputed]
    assert [k.token_ids for k in kept] != [r.token_ids for r in recomputed]
    assert all("lossy" in k.metrics.decision for k in kept)


@pytest.mark.drafts(20, 2, nodes=None)
def test_begun_again_it_is_deeps_whole_answer(llm: LLM) -> None:
    """And a stream tells nothing that is dropped."""
    deep = llm.chat("one two", sampling(max_tokens=9), mode="deep")
    mode = unsure("restart", 0.99, 2)
    pieces = list(llm.stream_chat("one two", sampling(max_tokens=9), mode=mode))
    out = pieces[-1].output
    assert out is not None and "".join(p.text for p in pieces) == out.text
    assert "".join(p.reasoning for p in pieces) == out.reasoning
    assert [x for p in pieces for x in p.token_ids] == out.token_ids and out.token_ids == deep.token_ids
    assert out.prompt_token_ids == deep.prompt_token_ids
    assert (out.text, out.reasoning) == (deep.text, deep.reasoning)
    assert out.reasoning, "it thinks"
    assert out.metrics.mode == "deep" and out.metrics.escalated_at == 2
    assert "begun again, 2 tokens dropped" in out.metrics.decision and out.finish_reason == "length"


@pytest.mark.drafts(100, 10, nodes=None)
def test_escalating_in_a_batch_is_as_alone(llm: LLM) -> None:
    modes: list[str | Mode] = ["deep", *[unsure(how, 0.6) for how in ("recompute", "keep", "restart")], "fast"]
    prompts = [[{"role": "user", "content": q}] for q in (*QUESTIONS[1:], *QUESTIONS)]
    batched = llm.generate(prompts, sampling(), mode=modes, progress=False)
    alone = [llm.generate(p, sampling(), mode=m) for p, m in zip(prompts, modes)]
    assert [o.token_ids for o in batched] == [o.token_ids for o in alone]
    assert [o.metrics.escalated_at for o in batched] == [o.metrics.escalated_at for o in alone]


def test_an_answer_that_begins_again_has_the_law_of_its_mode(llm: LLM) -> None:
    """A first token that is unlikely in the fast mode drops the answer. Drawn again with the same
    number, tokens of the other mode would come that lie where the unlikely ones lie."""
    one, runs = sampling(max_tokens=1), 400
    hot, warm = (SamplingParams(temperature=t) for t in (1.0, 0.5))
    calm = Mode(name="calm", groups=1, thinking="off", sampling=warm)
    said = llm.chat("one two", one.model_copy(update={"logprobs": 320}), mode=calm).logprobs
    assert said is not None
    warmed = {token: exp(value / 0.5) for token, value in said[0].items()}
    expected = {token: p / sum(warmed.values()) for token, p in warmed.items()}
    doubt = Escalation(below=0.5, window=1, to="calm", how="restart")
    fast = Mode(groups=4, thinking="off", sampling=hot, escalate=doubt)
    seeds = [SamplingParams(max_tokens=1, ignore_eos=True, seed=n) for n in range(runs)]
    prompts = [[{"role": "user", "content": "one two"}]] * runs
    llm.modes["calm"] = calm
    outs = llm.generate(prompts, seeds, mode=fast, progress=False)
    del llm.modes["calm"]
    again = [o.token_ids[0] for o in outs if o.metrics.escalated_at is not None]
    assert runs / 10 < len(again) < runs / 2
    for token, p in sorted(expected.items(), key=lambda item: -item[1])[:8]:
        share, sigma = again.count(token) / len(again), (p * (1 - p) / len(again)) ** 0.5
        assert abs(share - p) < 4.5 * sigma, (token, p, share)


def test_an_unknown_mode_to_go_on_in_is_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match="'deeper' is unknown; did you mean 'deep'"):
        llm.chat("one", mode=unsure("recompute", to="deeper"))


def test_preemption_changes_nothing_that_was_kept(tmp_path: Path) -> None:
    model = load_model(write_kin(tmp_path / "m", vocab_size=96), "float32", progress=False)
    bench = Bench(model, {"ngram": lambda _: NgramDraft(longest=3, shortest=1)})
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    asks = [Ask(tuple(range(5 + n, 14 + n)), params, "ngram", groups=0) for n in range(3)]

    def run(setting: Setting, some: list[Ask], core: EngineCore | None = None) -> list[Request]:
        core = core or bench.core(setting)
        requests = [bench.request(n, ask, **doubts(0.9, keep=True)) for n, ask in enumerate(some)]
        finish(core, requests)
        return requests

    alone = [answer(run(PLENTY, [ask])[0]) for ask in asks]
    left = 0
    for rows in (3, 4, 5, 7):  # chunks end before, at and behind the border
        core = bench.core(Setting(pages=14, prompt_rows=rows))
        beside = run(PLENTY, asks, core)
        assert [answer(r) for r in beside] == alone
        left += sum(r.kept is not None and r.spec_stats.preemptions > 0 for r in beside)
        for request in beside:
            ask = Ask(tuple(request.tokens), SamplingParams(max_tokens=1, logprobs=5), groups=0)
            found = bench.request(9, ask)
            finish(core, [found])
            assert found.log.logprobs == bench.run([ask])[0].log.logprobs, "no page of a mixture was shared"
    assert left, "somebody was preempted after it changed its mode"


def test_a_draft_that_runs_over_the_switch_changes_nothing(tmp_path: Path) -> None:
    model = load_model(write_kin(tmp_path / "m", vocab_size=96), "float32", progress=False)
    known: dict[int, list[int]] = {}
    bench = Bench(model, {"told": lambda _: OracleDraft(known)})
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    cut = 0
    for keep in (False, True):
        for n in range(4):
            ask = Ask(tuple(range(5 + n, 14 + n)), params, "told", groups=0)
            known[n] = [*ask.tokens, *answer(bench.alone(ask))]
            found = []
            for one in (ask, ask.plain):
                core = bench.core()
                request = bench.request(n, one, **doubts(0.5, keep))
                finish(core, [request])
                assert request.escalated and request.escalation is not None
                found.append(answer(request))
                cut += max(request.spec_stats.runs[:1]) > 0 and request.escalation.confidence.tokens % 7 > 0
            assert found[0] == found[1] != known[n][len(ask.tokens) :]
    assert cut, "somewhere the switch was inside a run of accepted tokens"


def test_a_forced_token_is_no_doubt(llm: LLM) -> None:
    """A mode that does not think closes a thought at once, whatever the model makes of that."""
    open_, close = (llm.tokenizer.token_id(t) for t in ("<think>", "</think>"))  # type: ignore[union-attr]
    bias = SamplingParams(max_tokens=8, ignore_eos=True, logit_bias={open_ or 0: 60.0})
    told = llm.chat("one two", bias.model_copy(update={"logprobs": 0}), mode="fast")
    assert told.token_ids == [open_, close] * 4 and told.logprobs is not None
    said = [exp(table[x]) for table, x in zip(told.logprobs, told.token_ids)]
    below = 0.5 * min(said[::2]) ** 0.5  # with every forced token counted as sure, none falls below
    assert (said[0] * said[1]) ** 0.5 < below, "counted as the model has it, the first pair does"
    assert llm.chat("one two", bias, mode=unsure("recompute", below, 2)).metrics.escalated_at is None

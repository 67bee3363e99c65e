"""The source of each token, and what each drafter drafted, position by position."""

from dataclasses import replace

import pytest
from engine_tools import Ask, Bench, OracleDraft, answer, write_kin
from thoughts import Bound
from tokenizers_tiny import write_bpe

from fastslow.draft.several import AdaptiveDrafter, FallbackDrafter
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.request import Request
from fastslow.engine.core.spec_decode_stats import DraftCounts, SpecDecodeStats
from fastslow.engine.params import SamplingParams
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.types import Drafter, RequestView, Tree
from fastslow.policies.speculation.selection import AdaptiveSelection

VOCAB = 320
OPEN, CLOSE = 3, 4
PROMPT = (5, 9, 13, 21)
TWENTY = SamplingParams(max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = write_kin(tmp_path_factory.mktemp("moge"), vocab_size=VOCAB)
    write_bpe(folder, vocab_size=VOCAB)
    return Bench(load_model(folder), {}, load_tokenizer(folder))


def run(bench: Bench, ask: Ask, drafter: Drafter) -> Request:
    bench.drafters = {ask.drafter: lambda kv: drafter}
    return bench.run([ask])[0]


class Scored(OracleDraft):
    """The same with scores, as drafters need that are merged."""

    def _tree(self, request: RequestView, nodes: int) -> Tree:
        tree = super()._tree(request, nodes)
        return replace(tree, scores=[0.5 ** (i + 1) for i in range(len(tree.tokens))])


def test_a_drafted_token_has_its_drafters_name_where_it_ends_the_answer_too(bench: Bench) -> None:
    known = bench.alone(Ask(PROMPT, TWENTY)).tokens
    wrong = {len(PROMPT) + n for n in (2, 9)}
    drafter = OracleDraft({0: known}, lambda place: place in wrong)
    request = run(bench, Ask(PROMPT, TWENTY, "oracle", nodes=4), drafter)
    assert len(set(request.spec_stats.runs)) > 1
    said = [name for n in request.spec_stats.runs for name in (*["oracle"] * n, "target")]
    assert request.log.sources == said and answer(request) == known[len(PROMPT) :]
    assert run(bench, Ask(PROMPT, TWENTY), drafter).log.sources == ["target"] * 20
    known = bench.alone(Ask(PROMPT, TWENTY)).tokens
    own = known[len(PROMPT) :]
    stop = next(n for n in range(3, 9) if own[n] not in own[:n])
    ends = TWENTY.model_copy(update={"stop_token_ids": [own[stop]]})
    told = OracleDraft({0: known}, forked=True)
    request = run(bench, Ask(PROMPT, ends, "oracle", nodes=19), told)
    assert (request.spec_stats.steps, request.stopper.matched) == (1, own[stop])
    assert request.log.sources == ["oracle"] * (stop + 1) and request.spec_stats.accepted == stop


def test_of_several_drafters_the_one_that_drafted_it(bench: Bench) -> None:
    known = bench.alone(Ask(PROMPT, TWENTY)).tokens
    first = Scored({0: known[: len(PROMPT) + 6]})
    second = Scored({0: known}, lambda place: place == len(PROMPT) + 12)
    fallback = FallbackDrafter(first, second, names=("a", "b"))
    request = run(bench, Ask(PROMPT, TWENTY, "a+b", nodes=4), fallback)
    assert answer(request) == known[len(PROMPT) :]
    assert set(request.log.sources[:6]) <= {"a", "target"} and "b" not in request.log.sources[:6]
    assert set(request.log.sources[6:]) == {"b", "target"}
    merged = AdaptiveDrafter([first, second], AdaptiveSelection(2), names=("a", "b"))
    request = run(bench, Ask(PROMPT, TWENTY, "a|b", nodes=6), merged)
    assert answer(request) == known[len(PROMPT) :]
    assert set(request.log.sources) <= {"a", "b", "target"} and "a" in request.log.sources
    by = request.spec_stats.by_drafter
    assert sum(counts.accepted for counts in by.values()) == request.spec_stats.accepted > 0
    assert sum(counts.drafted for counts in by.values()) == request.spec_stats.drafted
    for name, counts in by.items():
        assert 0 <= request.log.sources.count(name) - counts.accepted <= 1
        assert counts.accepted == sum(counts.accepted_at) and counts.drafted >= counts.accepted
        assert all(a <= o for a, o in zip(counts.accepted_at, counts.offered_at, strict=True))


@pytest.mark.parametrize("drafter", ["off", "silent", "knows"])
def test_what_a_budget_forces_is_forced_whoever_drafts_it(bench: Bench, drafter: str) -> None:
    ask = Ask((*PROMPT, OPEN), TWENTY, drafter, nodes=5, bound=Bound(6, closing="So", opened=True))
    known = bench.alone(ask).tokens
    request = run(bench, ask, OracleDraft({0: known} if drafter == "knows" else {}))
    assert answer(request) == known[len(ask.tokens) :]
    close = answer(request).index(CLOSE)
    assert close > 6 and request.log.sources[6 : close + 1] == ["forced"] * (close - 5)
    assert "forced" not in request.log.sources[:6] + request.log.sources[close + 1 :]
    if drafter == "silent":
        assert list(request.spec_stats.by_drafter) == ["forced"]
        assert request.spec_stats.by_drafter["forced"].accepted > 0


def test_counts_by_position() -> None:
    tally = SpecDecodeStats()
    tally.add("a", Tree.chain([5, 6, 7]), [0, 1])
    tally.add("a", Tree(), [])
    tally.add("a", Tree.chain([5]), [0])
    tally.add("x", Tree([1, 2, 3, 4], [-1, -1, 1, 2], drafter_names=["a", "b", "b", "a"]), [1, 2, 3])
    assert (tally.steps, tally.drafted, tally.accepted, tally.runs) == (4, 8, 6, [2, 0, 1, 3])
    assert (tally.offered_at, tally.accepted_at) == ([3, 2, 2], [3, 2, 1])
    assert tally.by_drafter == {"a": DraftCounts(6, 4, [3, 1, 2], [2, 1, 1]), "b": DraftCounts(2, 2, [1, 1], [1, 1])}
    assert (SpecDecodeStats().offered_at, SpecDecodeStats().accepted_at) == ([], [])

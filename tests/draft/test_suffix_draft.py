"""SuffixDraft as the engine uses it: what it keeps of whom, and the tokens of plain decoding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from head_tools import View

from fastslow.draft.suffix.corpus import Corpus, save
from fastslow.draft.suffix.documents import Documents
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.draft.suffix.sources import AnswerMemory
from fastslow.engine.params import SamplingParams
from fastslow.engine.types import AcceptResult

VOCAB = 320
IDS = {f"t{i}": i for i in range(VOCAB)}


def view(tokens: Sequence[int], number: int = 0, prompt: int = 1, **fields: Any) -> Any:
    return View(number, tokens, **{"max_len": 10**6, "end_ids": frozenset([9]), "prompt_length": prompt} | fields)


def chain(drafter: SuffixDraft, request: Any, nodes: int = 8) -> list[int]:
    tree = drafter.propose([request], [nodes])[0]
    assert list(tree.parents) == list(range(-1, len(tree.tokens) - 1))
    return list(tree.tokens)


def test_it_copies_from_the_requests_own_text() -> None:
    drafter = SuffixDraft(min_score=0.0)
    request = view([1, 2, 3, 4, 5, 1, 2])
    assert chain(drafter, request, 3) == [3, 4, 5]
    request.tokens += [3, 4]
    assert chain(drafter, request, 2) == [5, 1]
    request.tokens += [7, 1, 2, 3]
    assert chain(drafter, request, 1) == [4] and chain(drafter, request, 0) == []
    assert chain(drafter, view([1, 2, 3], 5)) == []
    assert chain(SuffixDraft(min_score=0.99), view([1, 2, 3, 1, 2], 6)) == []


@pytest.mark.parametrize(("tokens", "fields", "kept"), [
    ([1, 2, 3, 4, 5, 9], {}, True),
    ([1, 2, 3, 4, 5, 6], {"max_len": 5}, True),
    ([1, 2, 3, 4, 5, 6], {"max_len": 6}, False),
    ([1, 2, 3, 4, 5, 9], {"prompt_length": 6}, False),
    ([1, 2, 3, 4, 5, 9], {"params": SamplingParams(temperature=1)}, True),
    ([1, 2, 3, 4, 5, 9], {"params": SamplingParams(temperature=1, seed=3)}, False),
    ([1, 2, 3, 4, 5, 9], {"params": SamplingParams(seed=3)}, True),
], ids=["ended", "full", "cancelled", "nothing", "sampled", "seeded", "seeded greedy"])  # fmt: skip
@pytest.mark.parametrize("memory", [True, False])
def test_finished_answers_are_kept_for_the_next_request(
    tokens: list[int], fields: dict[str, Any], kept: bool, memory: bool
) -> None:
    """Of any drafter that has the same memory."""
    shared = AnswerMemory() if memory else None
    first, second = (SuffixDraft(memory=shared, min_score=0.0) for _ in range(2))
    request = view([1, 2, 3, 4])
    assert chain(first, request) == []
    vars(request).update(fields, tokens=tokens)
    first.commit([request], AcceptResult([[]], [[4]]), None)
    first.release([0, 12345])
    assert not first._texts
    for drafter in (first, second):
        assert chain(drafter, view([1, 2, 3], 1)) == (tokens[3:] if kept and memory else [])


def say(drafter: SuffixDraft, key: str | None, *answer: int, number: int = 0) -> None:
    """An answer to the prompt 1, 2, 3."""
    request = view([1, 2, 3], number, memory_key=key)
    drafter.propose([request], [4])
    request.tokens += answer
    drafter.release([number])


def heard(drafter: SuffixDraft, key: str | None, number: int = 99) -> list[int]:
    return chain(drafter, view([1, 2, 3], number, memory_key=key))


@pytest.mark.parametrize("common", [True, False])
def test_answers_are_remembered_for_their_own_key(common: bool) -> None:
    drafter = SuffixDraft(memory=AnswerMemory(common), min_score=0.0)
    for key, token in (("a", 4), ("b", 5), (None, 6)):
        say(drafter, key, token, 9)
    found = [heard(drafter, key, n) for n, key in enumerate(("a", "b", "c", None))]
    assert found == [[4, 9], [5, 9], [], [6, 9] if common else []]


def test_keys_are_few_and_the_least_recently_used_key_goes() -> None:
    memory = AnswerMemory(keys=2, tokens=256)
    drafter = SuffixDraft(memory=memory, min_score=0.0)
    for key, token in (("a", 4), ("b", 5), ("c", 6)):
        say(drafter, key, token, 9)
        assert heard(drafter, "a") == [4, 9]
    assert [heard(drafter, key) for key in "bc"] == [[], [6, 9]] and len(memory._by_key) == 2


def test_what_is_forgotten_is_drafted_for_nobody(tmp_path: Path) -> None:
    memory = AnswerMemory()
    drafter = SuffixDraft(memory=memory, min_score=0.0)
    for key in ("a", None):
        say(drafter, key, 4, 5, 6, 9)
    going = view([1, 2, 3], 1)
    assert chain(drafter, going, 1) == [4]
    memory.clear()
    drafter.forget()
    going.shared = False  # as the engine has it
    going.tokens += [4]
    assert chain(drafter, going, 1) == [], "its run was of an answer that is forgotten"
    going.tokens += [7, 9]
    drafter.release([1])
    assert heard(drafter, "a", 2) == heard(drafter, None, 3) == []
    say(drafter, None, 8, 9, number=4)
    assert heard(drafter, None, 5) == [8, 9], "later ones are remembered"
    documents = Documents()
    documents.add([1, 2, 3, 4, 5, 6])
    save(tmp_path / "c", documents, IDS)
    stored = SuffixDraft(Corpus(tmp_path / "c", IDS), min_score=0.0)
    stored.forget()
    assert heard(stored, None) == [4, 5, 6], "a corpus stays"

"""The parts of suffix drafting against plain, slow searches."""

import random
from pathlib import Path

import numpy as np
import pytest
from head_tools import node_paths
from kernel_tools import compiled

from fastslow.draft.suffix.corpus import ArraySearch, Corpus, KernelSearch, save
from fastslow.draft.suffix.documents import Documents
from fastslow.draft.suffix.sealed import read_sealed
from fastslow.draft.suffix.sources import END, MAX_MATCH, MAX_PLACES, EarlierAnswers, OwnText, SuffixMatch
from fastslow.draft.suffix.tree import MatchConfidence, MatchRuns, grow

LETTERS = 6
VOCAB = {chr(97 + i): i for i in range(LETTERS)}


def story(seed: int, length: int, letters: int = LETTERS) -> list[int]:
    """Text that repeats itself now and then, over and beyond MAX_MATCH tokens."""
    draw = random.Random(seed)
    text: list[int] = []
    while len(text) < length:
        if len(text) > 8 and draw.random() < 0.3:
            start = draw.randrange(len(text) - 4)
            text += text[start : start + draw.randrange(2, 3 * MAX_MATCH)]
        else:
            text.append(draw.randrange(letters))
    return text[:length]


def common_end(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b), MAX_MATCH) and a[-1 - n] == b[-1 - n]:
        n += 1
    return n


def matches(documents: list[list[int]], recent: list[int]) -> tuple[int, list[list[int]]]:
    """The longest match before any token, and what follows each such place; by looking at all."""
    found = [(common_end(text[:place], recent), text[place:]) for text in documents for place in range(1, len(text))]
    best = max((length for length, _ in found), default=0)
    return best, [run for length, run in found if length == best > 0]


def stored(folder: Path, documents: list[list[int]], letters: int = LETTERS) -> Corpus:
    made = Documents()
    for text in documents:
        made.add(text)
    vocab = {str(i): i for i in range(letters)}
    save(folder / "c", made, vocab)
    return Corpus(folder / "c", vocab)


def listed(found: SuffixMatch) -> list[list[int]]:
    return [list(run) for run in found.runs]


@pytest.fixture(params=[pytest.param("kernels", marks=compiled), "python"])
def searched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way in which a corpus is searched: by "kernels" or by "python"."""
    if request.param == "python":
        monkeypatch.setattr("fastslow.draft.suffix.corpus.library.available", lambda: False)
    return str(request.param)


@pytest.mark.parametrize(("seed", "letters"), [(0, LETTERS), (1, 2), (2, 300)])
def test_a_corpus_finds_what_a_slow_search_finds(tmp_path: Path, seed: int, letters: int, searched: str) -> None:
    """300 letters are not in the order of their bytes."""
    draw = random.Random(seed)
    documents = [story(seed * 100 + n, draw.randrange(1, 90), letters) for n in range(12)]
    documents += documents[:3]
    corpus = stored(tmp_path, documents, letters)
    search = {"kernels": KernelSearch, "python": ArraySearch}[searched]
    assert corpus.find.__func__ is search.find  # type: ignore[attr-defined]
    asked = 0
    for text in [*documents, story(999 + seed, 120, letters)]:
        for end in range(1, len(text), 3):
            recent = text[max(0, end - MAX_MATCH) : end]
            found = corpus.find(recent, 1000)
            length, runs = matches(documents, recent)
            assert found.length == length and found.whole == (len(runs) <= MAX_PLACES)
            got = listed(found)
            if found.whole:
                assert sorted(got) == sorted(runs)
            else:
                assert len(got) == MAX_PLACES and all(run in runs for run in got)
            asked += found.length == MAX_MATCH
    assert asked, "no text was as long as the longest match"
    for unknown in ([letters], [10_000], [-1]):
        assert corpus.find(unknown, 5) == SuffixMatch()
    assert corpus.find([9_999, documents[0][0]], 5).runs, "of a text the known end is looked up"


def test_a_question_is_matched_and_never_proposed(tmp_path: Path) -> None:
    made = Documents()
    made.add([4, 5], context=[0, 1, 2, 3])
    save(tmp_path / "c", made, VOCAB)
    corpus = Corpus(tmp_path / "c", VOCAB)
    assert corpus.find([0, 1], 9) == SuffixMatch()
    found = corpus.find([0, 1, 2, 3], 9)
    assert (found.length, listed(found)) == (4, [[4, 5]])
    earlier = EarlierAnswers()
    earlier.add([4, 5], context=[0, 1, 2, 3])
    assert not earlier.find([0, 1], 9).runs and earlier.find([0, 1, 2, 3], 9) == SuffixMatch(4, [[4, 5]])


def test_own_text_finds_the_longest_match_as_it_grows() -> None:
    text = story(0, 2500, letters=40)
    own, grown = OwnText(), list[int]()
    lengths = set()
    for end in [*range(1, 150), *range(1000, 1100, 7), *range(2000, 2500, 31)]:
        grown += text[len(grown) : end]
        own.read(grown)
        found = own.find(grown[-MAX_MATCH:], 3)
        length, runs = matches([grown], grown[-MAX_MATCH:])
        if found.whole:
            assert found.length == (length if length > 1 else 0)
        if found.length and found.whole:  # a loop goes on
            assert sorted(map(list, found.runs)) == sorted((run * 3)[:3] for run in runs)
        lengths.add(found.length)
    assert {0, 2, 5, MAX_MATCH} <= lengths
    own, loop = OwnText(), [9, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    own.read(loop)
    assert own.find(loop, 7).runs[0] == [1, 2, 3, 1, 2, 3, 1]


def test_earlier_answers_make_room_for_new_ones() -> None:
    earlier = EarlierAnswers(256)
    texts = [story(n, 50, letters=1000) for n in range(40)]
    for n, text in enumerate(texts):
        earlier.add(text)
        for old in texts[max(0, n - 3) : n + 1]:
            assert old[12:] in earlier.find(old[:12], 100).runs
        assert all(END not in run for run in earlier.find(text[-40:], 100).runs)
    gone = earlier.find(texts[0][:12], 100)
    assert all(run[:5] != texts[0][12:17] for run in gone.runs)

    # a long answer leaves three quarters of the ring
    earlier = EarlierAnswers(256)
    earlier.add([7, 8, 9])
    earlier.add(list(range(1000, 3000)))
    found = [earlier.find(recent, 5).runs for recent in ([7, 8], [2997, 2998], [1500, 1501])]
    assert found == [[[9]], [[2999]], []]


class Fixed:
    """A source that answers with given runs."""

    def __init__(self, length: int, runs: list[list[int]], whole: bool = True) -> None:
        self.found = SuffixMatch(length, runs, whole)

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        length, runs, whole = self.found
        return SuffixMatch(length, [run[:ahead] for run in runs], whole)


def certain(value: float = 1.0) -> MatchConfidence:
    confidence = MatchConfidence()
    confidence.of = lambda length: value  # type: ignore[method-assign]
    return confidence


def test_a_tree_branches_by_counts_and_the_longest_match_wins() -> None:
    runs = MatchRuns([Fixed(3, [[1, 2, 3], [1, 2, 4], [1, 5], [6]])], [0], 9)
    tree = grow(runs, certain(), 9, 0.0)
    said = list(tree.scores or ())
    assert dict(zip(node_paths(tree), said)) == pytest.approx({
        (1,): 3 / 4, (6,): 1 / 4, (1, 2): 1 / 2, (1, 5): 1 / 4, (1, 2, 3): 1 / 4, (1, 2, 4): 1 / 4,
    })  # fmt: skip
    assert said == sorted(said, reverse=True) and grow(runs, certain(), 2, 0.0).tokens == [1, 2]
    assert grow(runs, certain(), 9, 0.3).tokens == [1, 2] and grow(runs, certain(0.5), 9, 0.3).tokens == [1]
    assert grow(runs, certain(), 0, 0.0).tokens == grow(MatchRuns(), certain(), 5, 0.0).tokens == []
    short, long, other = Fixed(2, [[7]]), Fixed(5, [[1], [2]]), Fixed(5, [[1]], whole=False)
    runs = MatchRuns([short, long, other, Fixed(0, [])], [0], 9)
    assert (runs.length, runs.runs) == (5, [[1], [2], [1]])
    assert not runs.enough_for(1), "a sample of few is looked up again"
    assert MatchRuns([short, long], [0], 9).enough_for(1)
    assert not MatchRuns([short, long], [0], 9).enough_for(2), "the runs end too soon"


def test_runs_are_narrowed_and_trust_learns_from_them() -> None:
    confidence = MatchConfidence()
    before = [confidence.of(n) for n in range(MAX_MATCH + 1)]
    runs = MatchRuns([Fixed(4, [[1, 2, 3], [1, 2, 9], [1, 5]])], [0], 9)
    runs.advance([1, 2, 7, 8], confidence)
    assert (runs.runs, runs.at) == ([], 3)
    assert [np.sign(confidence.of(n) - before[n]) for n in range(3, 9)] == [0, 1, 1, -1, 0, 0]
    runs = MatchRuns([Fixed(MAX_MATCH, [[1]])], [0], 9)
    runs.advance([1, 2], confidence)
    assert confidence.of(MAX_MATCH) == confidence.of(MAX_MATCH + 50) > before[MAX_MATCH]
    for i in range(5000):
        confidence.learn(2, i % 10 == 0)
    assert confidence.of(2) == pytest.approx(0.1, abs=0.02)
    for _ in range(600):
        confidence.learn(2, True)
    assert confidence.of(2) > 0.5, "what is long past counts less"


def test_narrowed_runs_are_what_a_new_search_finds(tmp_path: Path) -> None:
    documents = [story(n, 80) for n in range(3)]
    corpus = stored(tmp_path, documents)
    compared = 0
    for seed in range(10):
        text = [*story(seed, 30), *documents[seed % 3][seed : seed + 40]]
        for end in range(20, len(text) - 3):
            recent = text[:end][-MAX_MATCH:]
            runs = MatchRuns([corpus], recent, 500)
            if runs.length + 3 > MAX_MATCH or not corpus.find(recent, 1).whole:
                continue
            runs.advance(text[end : end + 3], MatchConfidence())
            again = MatchRuns([corpus], text[: end + 3][-MAX_MATCH:], 500)
            if runs.enough_for(1):
                assert again.length == runs.length + 3
                left = sorted(list(run[runs.at :]) for run in runs.runs if len(run) > runs.at)
                assert left == sorted(map(list, again.runs))
                compared += 1
    assert compared > 10


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("name", ["tokens", "order", "buckets"])
def test_a_corpus_that_is_written_over_in_use_says_tokens_all_the_same(tmp_path: Path, name: str) -> None:
    """Wrong drafts are rejected, and a number that is no token may crash: it was an address in the kernels."""
    texts = [story(n, 80) for n in range(3)]
    corpus = stored(tmp_path, texts)
    sealed, draw = read_sealed(tmp_path / "c"), np.random.default_rng(0)
    old = sealed.arrays[name].copy()
    at = (tmp_path / "c").read_bytes().index(old.tobytes())
    wild = (2**31 - 1, -(2**31), LETTERS, len(sealed.arrays["tokens"]) - 1, 0)
    changed = [draw.permutation(old.ravel()) for _ in range(3)]
    for new in [*changed, *(np.full(old.size, value, np.int32) for value in wild)]:
        with (tmp_path / "c").open("r+b") as file:
            file.seek(at)
            file.write(new.tobytes())
        for text in texts:
            for end in range(1, len(text)):
                for run in corpus.find(text[max(0, end - MAX_MATCH) : end], 20).runs:
                    assert len(run) <= 20 and all(0 <= token < LETTERS for token in run)

"""Drafters on their own: prompt lookup, one after the other, each its own, and by name."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest
from head_tools import View
from refusals import refused

from fastslow.draft.base import BaseDrafter
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.registry import check_drafter
from fastslow.draft.router import DrafterRouter
from fastslow.draft.several import AdaptiveDrafter, FallbackDrafter, counted
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Speculation
from fastslow.engine.types import AcceptResult, Drafter, RequestView, Tree
from fastslow.policies.speculation.selection import AdaptiveSelection


def text(tokens: Sequence[int], number: int = 0, drafter: str = "ngram") -> Any:
    return View(number, tokens, speculation=Speculation(drafter=drafter))


def chains(trees: list[Tree]) -> list[list[int]]:
    assert all(list(t.parents) == list(range(-1, len(t.tokens) - 1)) for t in trees)
    return [list(t.tokens) for t in trees]


def lookup(tokens: Sequence[int], nodes: int = 4, **sizes: int) -> list[int]:
    return chains(NgramDraft(**sizes).propose([text(tokens)], [nodes]))[0]


def test_ngram_copies_what_followed() -> None:
    assert lookup([1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5, 1] and lookup([1, 2, 3, 4, 5, 1, 2], nodes=2) == [3, 4]
    assert lookup([1, 2, 3, 1, 2], nodes=9) == [3, 1, 2], "no further than the text goes"
    assert lookup([7, 7, 7]) == [7] and lookup([1, 2, 3, 4]) == lookup([1, 9, 3, 1]) == lookup([5]) == []
    assert lookup([1, 2, 3, 1], shortest=1) == [2, 3, 1] and lookup([1, 2, 3, 1, 2], nodes=0) == []


def test_ngram_keeps_up_with_texts_that_grow_apart_and_forgets_them() -> None:
    drafter = NgramDraft()
    story = [n * n % 11 % 4 for n in range(120)]
    for stop in (1, 2, 3, 7, 8, *range(20, 120)):
        begun = story[:stop]
        wanted = next(
            (
                begun[end : end + 3]
                for size in (4, 3, 2)
                for end in range(stop - 1, size - 1, -1)
                if begun[end - size : end] == begun[-size:]
            ),
            [],
        )
        assert chains(drafter.propose([text(begun, 7)], [3])) == [wanted]
    a, b = text([1, 2, 3, 1, 2], 0), text([1, 2, 4, 1, 2], 1)
    assert chains(drafter.propose([a, b, text([9], 2)], [1, 1, 1])) == [[3], [4], []]
    drafter.release([0, 99])
    assert chains(drafter.propose([text([1, 2, 5, 1, 2], 0), b], [1, 1])) == [[5], [4]]
    drafter.release([0, 1, 2, 7])
    assert not drafter._indexes


class Says(BaseDrafter):
    """Proposes a fixed chain for the requests it knows, and writes down what it is asked."""

    def __init__(self, chains: dict[int, list[int]]) -> None:
        self.chains = chains
        self.asked: list[tuple[list[int], list[int]]] = []
        self.committed: list[tuple[list[int], AcceptResult]] = []
        self.released: list[int] = []

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        self.asked.append(([r.id for r in batch], list(nodes)))
        return [Tree.chain(self.chains.get(r.id, [])[:n]) for r, n in zip(batch, nodes)]

    def commit(self, batch: Sequence[RequestView], result: AcceptResult, features: object) -> None:
        self.committed.append(([r.id for r in batch], result))

    def release(self, requests: Collection[int]) -> None:
        self.released += requests


def test_first_asks_the_next_only_where_nothing_was_said() -> None:
    a, b, c = Says({0: [5, 6]}), Says({0: [7], 1: [8, 8]}), Says({2: [9]})
    batch = [text([1], n) for n in range(4)]
    assert chains(FallbackDrafter(a, b, c).propose(batch, [1, 2, 3, 0])) == [[5], [8, 8], [9], []]
    assert [d.asked[0][1] for d in (a, b, c)] == [[1, 2, 3, 0], [0, 2, 3, 0], [0, 0, 3, 0]]
    result = AcceptResult([[], [], [], []], [[1], [2], [3], [4]])
    first = FallbackDrafter(a, b, c)
    first.commit(batch, result, None)
    first.release([3])
    assert all(d.committed == [([0, 1, 2, 3], result)] and d.released == [3] for d in (a, b, c))


def test_each_asks_a_requests_own_drafter_and_no_other() -> None:
    a, b = Says({0: [5], 2: [6, 7]}), Says({1: [8]})
    each = DrafterRouter({Speculation(drafter="ngram"): a, Speculation(drafter="self"): b})
    names = ["ngram", "self", "ngram", "off"]
    batch = [text([1], n, name) for n, name in enumerate(names)]
    assert chains(each.propose(batch, [4, 4, 4, 4])) == [[5], [8], [6, 7], []]
    assert (a.asked, b.asked) == ([([0, 2], [4, 4])], [([1], [4])])
    each.commit(batch, AcceptResult([[0], [], [0], []], [[5, 1], [2], [6, 3], [4]]), None)
    assert a.committed == [([0, 2], AcceptResult([[0], [0]], [[5, 1], [6, 3]]))]
    assert b.committed == [([1], AcceptResult([[]], [[2]]))]
    each.release([1, 3])
    assert a.released == b.released == [1, 3] and chains(each.propose([], [])) == []


def joined(drafters: list[Says], how: str) -> Drafter:
    if how == "+":
        return FallbackDrafter(*drafters)
    if how == "|":
        return AdaptiveDrafter(drafters, AdaptiveSelection(len(drafters)))
    return DrafterRouter({Speculation(drafter=n): d for n, d in zip(("ngram", "self", "suffix"), drafters)})


class Bad(Says):
    """Cannot release, and proposes for one request more, or fewer, than it is asked."""

    def release(self, requests: Collection[int]) -> None:
        raise RuntimeError(f"cannot release {list(requests)}")

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = super().propose(batch, nodes)
        return [*trees, Tree()] if self.chains else trees[:-1]


@pytest.mark.parametrize("how", ["+", "|", "each its own"])
@pytest.mark.parametrize(("chains", "count"), [({}, 1), ({0: [5]}, 3)])
def test_a_bad_drafter_is_named_and_does_not_keep_the_others(
    how: str, chains: dict[int, list[int]], count: int
) -> None:
    bad, batch = Bad(chains), [text([1], 0), text([1], 1)]
    with pytest.raises(ValueError, match=f"^the drafter proposed {count} trees for 2 requests$"):
        joined([bad, Says({}), Says({})], how).propose(batch, [2, 2])
    a, c = Says({}), Says({})
    with pytest.raises(RuntimeError, match=r"cannot release \[4\]"):
        joined([a, bad, c], how).release([4])
    assert a.released == c.released == [4]


@pytest.mark.parametrize(("settings", "groups", "pattern"), [
    ({"drafter": "ngarm"}, 8, r"'ngarm' is unknown; did you mean 'ngram'\?$"),
    ({"drafter": "zz"}, 8, "'zz' is unknown; known: auto, head, model, mtp, ngram, off, self, suf"),
    ({"drafter": "ngram+"}, 8, r"'ngram\+' is unknown"),
    ({"drafter": "self"}, 0, "'self' needs a model with routed groups"),
    ({"drafter": "ngram+model"}, 8, "'model' needs model=PATH"),
    ({"drafter": "ngram+self|suffix"}, 8, r".* must join names by \+ or by \|, not by both$"),
    ({"drafter": "head"}, 8, "'head' needs head=PATH"),
], ids=str)  # fmt: skip
def test_bad_names(settings: dict[str, Any], groups: int, pattern: str) -> None:
    refused(f"^drafter={pattern}", check_drafter, Speculation(**settings), RoutedUnits("groups", groups))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^speculation groups=9 is outside 0\.\.8$"):
        check_drafter(Speculation(drafter="self", groups=9), RoutedUnits("groups", 8))
    for made in (None, [[1, 2]]):
        refused("and a list of Tree is needed", counted, made, 1)

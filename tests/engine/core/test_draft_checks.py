"""What a drafter proposes is checked before the model sees it: anybody may write one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from fastslow import LLM, GenerationError, SamplingParams, Speculation
from fastslow.draft.base import BaseDrafter
from fastslow.draft.registry import DRAFTERS, DrafterKind
from fastslow.engine.types import RequestView, Tree


class Says(BaseDrafter):
    """The same tree for every request."""

    trees: Sequence[Tree] = ()

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return list(self.trees)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    DRAFTERS["says"] = DrafterKind(lambda settings, deps: Says(), help="", likely_cause="")
    with LLM("abacus", progress=False) as llm:
        yield llm
    del DRAFTERS["says"]


@pytest.mark.parametrize(
    ("trees", "said"),
    [
        ([Tree.chain([5] * 9)], r"proposed \[9\] nodes where \[4\] fit"),
        ([Tree.chain([5, -1])], r"tokens \[5, -1\], and ids are 0 to \d+"),
        ([Tree.chain([10**6])], r"tokens \[1000000\], and ids are 0 to \d+"),
        ([Tree([5, 6], [-1, 1])], r"parents \[-1, 1\]: each must come earlier"),
        ([Tree([5, 6], [-1])], r"parents \[-1\]: each must come earlier"),
        ([Tree([5], [-2])], r"parents \[-2\]: each must come earlier"),
    ],
)
def test_a_tree_that_does_not_fit_ends_its_step(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, trees: list[Tree], said: str
) -> None:
    monkeypatch.setattr(Says, "trees", trees)
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    with pytest.raises(GenerationError, match=said):
        llm.generate("1 + 1", sampling, speculation=Speculation(drafter="says", nodes=4))
    assert len(llm.generate("1 + 1", sampling).token_ids) == 8  # the engine goes on

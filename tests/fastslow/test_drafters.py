"""Drafters come with the settings that ask for them, and go when nobody uses them."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import write_chat
from engine_tools import write_kin
from gate import open_llm
from head_tools import tiny_weights, write_head
from refusals import refused

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.runner import KernelRunner, TorchRunner
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.drafters import MOST, MOST_MODELS
from fastslow.engine.kv.cache import KVCache

TEN = SamplingParams(max_tokens=10, ignore_eos=True)
PROMPT = [5, 6, 7, 5, 6, 8, 5, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_chat(tmp_path_factory.mktemp("moge"), "{{ messages }}")
    config, weights = tiny_weights(folder)
    write_head(folder / "draft_head.safetensors", replace(config, prompt=64), weights)
    return folder


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with open_llm(folder) as llm:
        yield llm


def alive(*kinds: type) -> int:
    gc.collect()
    return sum(type(thing) in kinds for thing in gc.get_objects())


FLOODS = [("suffix", 1000), ("self|suffix", 1000), ("suffix|head", 200), ("off", 200)]


@pytest.mark.parametrize(
    ("kind", "count"), [("suffix|head", 40), *(pytest.param(*one, marks=pytest.mark.slow) for one in FLOODS)]
)
def test_a_flood_of_settings_leaves_few_drafters(llm: LLM, kind: str, count: int) -> None:
    few = TEN.model_copy(update={"max_tokens": 4})
    plain = llm.generate(PROMPT, few, speculation="off").token_ids
    before = alive(SuffixDraft, ModelDraft, HeadDraft)
    for n in range(count):
        wish = Speculation(drafter=kind, model=f"not used {n}")
        assert llm.generate(PROMPT, few, speculation=wish).token_ids == plain
        assert len(llm._drafters.made) <= MOST
    parts = 1 + ("|" in kind)
    assert alive(SuffixDraft, ModelDraft, HeadDraft) <= before + parts * MOST
    controller = llm._parts.builder._controller
    known = (controller._acceptance, controller._costs._asking)
    assert all(len(some) <= MOST + 1 for some in known)
    assert len(llm._drafters._keys) == len(llm._drafters._users) <= MOST
    if kind == "suffix|head":
        (runner,) = llm._drafters._heads.values()
        assert isinstance(runner, KernelRunner | TorchRunner)
        held = runner._vocabs if isinstance(runner, KernelRunner) else runner._texts
        assert len(held) <= MOST, "a head that stays holds no text of a drafter that is gone"


def test_draft_models_go_with_their_last_drafter(llm: LLM, tmp_path: Path) -> None:
    small = write_kin(tmp_path, vocab_size=320)
    plain = llm.generate(PROMPT, TEN, speculation="off").token_ids
    caches = alive(KVCache)
    for n in range(2 * MOST_MODELS):
        wish = Speculation(drafter="model", model=small, width=1 + n % 8, nodes=3)
        out = llm.generate(PROMPT, TEN, speculation=wish)
        assert out.token_ids == plain and out.metrics.drafted > 0
        assert len(llm._drafters._models) == 1, "the weights are loaded once"
    assert alive(KVCache) == caches + MOST_MODELS
    for n in range(MOST):
        llm.generate(PROMPT, TEN, speculation=Speculation(drafter="ngram", model=f"{n}"))
    assert alive(KVCache) == caches and not llm._drafters._models, "pages and weights are free"
    out = llm.generate(PROMPT, TEN, speculation=wish)
    assert out.token_ids == plain and out.metrics.drafted > 0, "it is loaded again"


def test_a_drafter_that_is_used_stays(llm: LLM, logged: list[str]) -> None:
    """A request with other settings gets no drafts while all are used, and the log says so."""
    plain = llm.generate(PROMPT, TEN, speculation="off").token_ids
    with ExitStack() as stack:
        streams = []
        for n in range(MOST + 3):
            wish = Speculation(drafter="self", groups=1, nodes=2, model=f"{n}")
            streams.append(llm.stream(PROMPT, TEN, speculation=wish))
            stack.callback(streams[-1].close)
        outs = [[piece.output for piece in stream][-1] for stream in streams]
        assert all(out is not None and out.token_ids == plain for out in outs)
        assert [out.metrics.drafted > 0 for out in outs if out is not None] == [True] * MOST + [False] * 3
        assert {out.metrics.drafter for out in outs[MOST:] if out is not None} == {"off"}
    assert sum("32 drafters are in use" in line for line in logged) == 1
    again = llm.generate(PROMPT, TEN, speculation=wish)
    assert again.token_ids == plain and again.metrics.drafted > 0, "now there is room"


def test_a_draft_model_without_room_is_named(folder: Path, tmp_path: Path) -> None:
    """The memory that holds the target's pages may be too small for those of a wider draft model."""
    wide = write_chat(tmp_path / "wide", "{{ messages }}", num_hidden_layers=24)
    wish = Speculation(drafter="model", model=str(wide))
    with LLM(folder, kv_memory="700KiB", max_model_len=512) as llm:
        refused("^draft model .*wide.*: kv_memory is", llm.generate, PROMPT, TEN, speculation=wish)

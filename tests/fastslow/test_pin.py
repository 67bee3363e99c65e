"""Pinned prefixes: read once, never evicted, found by requests of the same mode and key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate import settled
from refusals import refused

from fastslow import LLM, Mode, SamplingParams

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
TEN = SamplingParams(max_tokens=10, ignore_eos=True)
PREFIX = list(range(10, 75))  # four pages of 16, and one token
SYSTEM = [{"role": "system", "content": "You answer in one short sentence, and you never say why."}]


def open_llm(folder: Path, **options: Any) -> LLM:
    """With 60 pages."""
    return LLM(folder, **{"kv_memory": 60 * 16 * 512, "max_model_len": 256, "progress": False, **options})


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with open_llm(folder) as llm:
        yield llm
        settled(llm)


def flood(llm: LLM) -> None:
    """Other texts, more than the pages hold."""
    for n in range(12):
        llm.generate([100 + n] * 200, TEN, speculation="off")


def cached(llm: LLM, prompt: Any, **options: Any) -> int:
    tokens: int = llm.generate(prompt, TEN, speculation="off", **options).metrics.cached_tokens
    return tokens


def test_a_pinned_prefix_is_never_evicted(llm: LLM) -> None:
    alone = llm.generate([*PREFIX, 80, 81], TEN, speculation="off").token_ids
    llm.forget_prompts()
    pin = llm.pin(PREFIX)
    assert (pin.tokens, pin.pages) == (64, 4) and llm.stats().pages_pinned == 4
    flood(llm)
    settled(llm)
    out = llm.generate([*PREFIX, 80, 81], TEN, speculation="off")
    assert out.metrics.cached_tokens == 64 and out.token_ids == alone
    stats = llm.stats()
    assert stats.pages_used == 4 and stats.modes["deep"].evicted_pages > 0
    assert stats.modes["deep"].prefix_hits == 1
    pin.unpin()
    pin.unpin()
    assert llm.stats().pages_pinned == 0 == llm.stats().pages_used
    flood(llm)
    assert cached(llm, [*PREFIX, 80]) == 0


def test_only_requests_of_the_same_mode_and_key_find_it(llm: LLM) -> None:
    fast = Mode(name="fast", groups=1)
    with llm.pin(PREFIX, mode=fast, memory_key="me"):
        flood(llm)
        assert cached(llm, [*PREFIX, 80], mode=fast, memory_key="me") == 64
        assert cached(llm, [*PREFIX, 80], mode=fast) == 0
        assert cached(llm, [*PREFIX, 80], mode=fast, memory_key="you") == 0
        assert cached(llm, [*PREFIX, 80], memory_key="me") == 0
    assert llm.stats().pages_pinned == 0


def test_requests_of_every_key_find_what_is_pinned_for_all_and_nothing_else(llm: LLM) -> None:
    secret = list(range(150, 182))  # two pages after it
    keys = (None, "me", "you")
    alone = llm.generate([*PREFIX, *secret, 80], TEN, speculation="off").token_ids
    llm.forget_prompts()
    assert cached(llm, [*PREFIX, 80], memory_key="me") == 0  # its key's own pages
    with llm.pin(PREFIX, every_key=True) as pin:
        assert pin.tokens == 64
        for key in keys:
            out = llm.generate([*PREFIX, *secret, 80], TEN, speculation="off", memory_key=key)
            assert out.metrics.cached_tokens == 64, f"{key} sees what another asked"
            assert out.token_ids == alone and cached(llm, [*PREFIX, *secret, 80], memory_key=key) == 96
        settled(llm)
        assert cached(llm, [*PREFIX, 80], mode=Mode(name="fast", groups=1), memory_key="me") == 0
        flood(llm)
        assert [cached(llm, [*PREFIX, 80], memory_key=key) for key in keys] == [64, 64, 64]
        params = TEN.model_copy(update={"prompt_logprobs": 0})  # it reads all of its prompt itself
        out = llm.generate([*PREFIX, *secret], params, speculation="off", memory_key="them")
        assert out.metrics.cached_tokens == 0
        settled(llm)
    with llm.pin(PREFIX):
        flood(llm)
        assert cached(llm, [*PREFIX, 80], memory_key="me") == 0, "a usual pin is its key's alone"


@pytest.mark.parametrize("last", ["system", "user"])
def test_of_messages_what_all_chats_share_that_continue_them(llm: LLM, last: str) -> None:
    begun, answered = SYSTEM, []
    if last == "user":
        begun = [*SYSTEM, {"role": "user", "content": "Hello there"}]
        answered = [{"role": "assistant", "content": "Hi."}]
    with llm.pin(begun) as pin:
        flood(llm)
        for question in ("What is it?", "Apples", "and then?"):
            found = cached(llm, [*begun, *answered, {"role": "user", "content": question}])
            assert found >= pin.tokens >= 32
            assert found - pin.tokens < 16 or question != "What is it?"


def test_two_pins_of_one_text_share_its_pages(llm: LLM) -> None:
    one, two = llm.pin(PREFIX), llm.pin([*PREFIX[:48], *range(200, 220)])
    assert (one.pages, two.pages, llm.stats().pages_pinned) == (4, 4, 5)
    one.unpin()
    settled(llm)
    assert llm.stats().pages_pinned == 4
    flood(llm)
    assert cached(llm, [*PREFIX, 80]) == 48
    two.unpin()


def test_a_pin_leaves_room_for_others(llm: LLM) -> None:
    pages = llm.stats().pages
    assert pages == 60  # so that at most half, 30, may be pinned
    pins = [llm.pin([n] * 160) for n in range(20, 23)]
    refused("30 are pinned already, and of 60 pages at most 30 may", llm.pin, [30] * 160)
    assert llm.stats().pages_pinned == 30
    flood(llm)
    long = SamplingParams(max_tokens=100, ignore_eos=True)
    handles = [llm.submit([n] * 150, long) for n in range(40, 46)]  # more than all pages
    assert all(len(handle.result().token_ids) == 100 for handle in handles)
    for pin in pins:
        pin.unpin()
    assert llm.stats().pages_pinned == 0


def test_what_cannot_be_pinned(llm: LLM, folder: Path) -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ([5, 6, 7, 8, 9], {}, "^the prefix has 5 tokens, and the least to pin is a page"),
        (PREFIX, {"mode": "auto"}, "^pin needs one mode, and this one chooses: name a preset$"),
        ([10**6] * 20, {}, "is 1000000, not an id in"),
        (["a", "b"], {}, "^pin takes one prompt"),
        (PREFIX, {"every_key": True, "memory_key": "me"}, "^every_key=True and a memory_key"),
        (PREFIX, {"every_key": 1}, "^every_key=1 must be True or False$"),
    ]
    for prompt, options, said in wrong:
        refused(said, llm.pin, prompt, **options)
    for options, said in (
        ({"kv_memory": 16 * 16 * 512}, "of 16 pages at most 0 may be pinned"),
        ({"prefix_caching": False}, "^pin needs prefix_caching=True$"),
    ):
        with open_llm(folder, **options) as other, pytest.raises(ValueError, match=said):
            other.pin(PREFIX)


def test_forgetting_and_closing_let_go_of_it(folder: Path) -> None:
    with open_llm(folder) as llm:
        pin = llm.pin(PREFIX)
        llm.forget_prompts()
        settled(llm)
        assert llm.stats().pages_pinned == 0 and cached(llm, [*PREFIX, 80]) == 0
        pin.unpin()
        again = llm.pin(PREFIX)
    again.unpin()
    with pytest.raises(RuntimeError, match="closed"):
        llm.pin(PREFIX)


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
def test_what_has_no_room_goes_to_a_file_and_comes_back(
    folder: Path, kv_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_llm(folder, kv_dtype=kv_dtype).close()  # with the kernels of the usual cache
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path))
    ask = [*PREFIX, 80, 81]
    small: dict[str, Any] = {"kv_dtype": kv_dtype, "kv_memory": 60 * 16 * {"model": 512, "int8": 160}[kv_dtype]}
    with open_llm(folder, **small) as llm:
        alone = llm.generate(ask, TEN, speculation="off").token_ids
        flood(llm)
        assert cached(llm, ask) == 0
    with open_llm(folder, **small, kv_spill="4MiB") as llm:
        first = llm.generate(ask, TEN, speculation="self", memory_key="me")
        flood(llm)
        again = llm.generate(ask, TEN, speculation="self", memory_key="me")
        assert first.token_ids == again.token_ids == alone
        assert (first.metrics.cached_tokens, again.metrics.cached_tokens) == (0, 64)
        assert cached(llm, ask) == 0, "another key"
        stats = llm.stats()
        assert stats.pages_restored >= 4 and stats.pages_spilled > 0
        settled(llm)
        flood(llm)
        llm.forget_prompts()
        assert llm.stats().pages_spilled == 0 and cached(llm, ask, memory_key="me") == 0
    refused("^kv_spill is 'much', but must be like 2GiB", open_llm, folder, kv_spill="much")
    assert list((tmp_path / "kv_spill").iterdir()) == []

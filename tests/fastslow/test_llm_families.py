"""Thinking as callers see it in models of the published families: switches, channels, what is said."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_templates import GPT_OSS, HARMONY, TEMPLATES, write_marked
from checkpoints import write_moge
from gate import open_llm
from pairs import pairwise

from fastslow import LLM, FastslowWarning, Mode, Output, SamplingParams, Speculation

OPEN, CLOSE = 3, 4  # <think>, </think>
ANALYSIS = "<|channel|>analysis<|message|>"
TWENTY = SamplingParams(max_tokens=20, ignore_eos=True)
FORTY = SamplingParams(max_tokens=40, ignore_eos=True)  # gpt-oss's closing takes many of them
USER = [{"role": "user", "content": "hello"}]
BEGUN: list[Any] = [*USER, {"role": "assistant", "content": "It is", "prefix": True}]
PHRASE = "\nSo:\n"
BRACKETS = ("[THINK]", "[/THINK]", "[INST]", "[/INST]")
# gpt-oss itself begins the header: a random model would not
OPENED = GPT_OSS.replace("<|start|>assistant{%", f"<|start|>assistant{ANALYSIS}{{%")
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (source, ()) for name, source in TEMPLATES.items() if "word" not in name},
    "gpt-oss": (GPT_OSS, HARMONY), "gpt-oss-opened": (OPENED, HARMONY),
    "magistral": (TEMPLATES["magistral"], BRACKETS), "mistral-effort": (TEMPLATES["mistral-effort"], BRACKETS),
}  # fmt: skip
SWITCHED = ("qwen3", "qwen3.5", "smollm3", "nemotron", "glm", "deepseek", "mistral-effort")
THINKERS = ("qwen3-2507-thinking", "r1-distill", "magistral")
SILENT = ("qwen3-2507-instruct", "llama")
OPENING = ("qwen3.5", "qwen3-2507-thinking", "r1-distill", "nemotron", "deepseek", "gpt-oss-opened")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    made = {}
    for name, (source, marks) in FAMILIES.items():
        vocab = write_marked(root / name, source, marks)
        made[name] = write_moge(root / name, vocab=vocab, num_hidden_layers=1, hidden_size=32)
    return made


@pytest.fixture(scope="module")
def llms(folders: dict[str, Path]) -> Iterator[dict[str, LLM]]:
    made = {name: open_llm(folder) for name, folder in folders.items()}
    yield made
    for llm in made.values():
        llm.close()


def streamed(llm: LLM, params: SamplingParams, **options: Any) -> Output:
    """The output of a stream, whose pieces are those of the output."""
    *pieces, last = llm.stream_chat(USER, params, **options)
    out = last.output
    assert out is not None
    every = [*pieces, last]
    assert out.reasoning == "".join(piece.reasoning for piece in every)
    assert out.text == "".join(piece.text for piece in every)
    return out


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"gpt-oss-opened"}))
def test_fast_answers_at_once(llms: dict[str, LLM], name: str) -> None:
    out = streamed(llms[name], TWENTY, mode="fast")
    assert (out.reasoning, out.metrics.thinking_tokens) == ("", 0) and out.text != ""
    assert out.prompt is not None and not out.prompt.rstrip().endswith("<think>")


@pytest.mark.parametrize("name", FAMILIES)
def test_deep_answers_however_few_tokens_there_are(llms: dict[str, LLM], name: str) -> None:
    for most in (1, 2, 3, 16, 17, 24):
        params = SamplingParams(max_tokens=most, ignore_eos=True)
        if name == "gpt-oss-opened" and most < 17:  # its closing tag is that long, and it has no switch
            with pytest.raises(ValueError, match="closing tag takes 16 of the [0-9]+ tokens"):
                llms[name].chat(USER, params)
        else:
            assert llms[name].chat(USER, params).text, most


@pytest.mark.parametrize("name", OPENING)
def test_deep_begins_inside_the_thought_that_a_template_opens(llms: dict[str, LLM], name: str) -> None:
    out = streamed(llms[name], TWENTY, mode={"base": "deep", "answer_room": None})
    assert (out.text, out.metrics.thinking_tokens, out.metrics.thinking_ended) == ("", 20, "length")
    assert out.prompt is not None and out.prompt.rstrip().endswith(("<think>", ANALYSIS))


@pytest.mark.drafts(15, 15)
@pytest.mark.parametrize(
    ("name", "wish", "most"), pairwise(OPENING, ["off", "self", Speculation(drafter="ngram", nodes=6)], [0, 1, 6])
)
def test_a_budget_is_exact_in_every_family(llms: dict[str, LLM], name: str, wish: str | Speculation, most: int) -> None:
    llm = llms[name]
    assert llm.tokenizer is not None
    mode = Mode(base="deep", thinking_budget=most, closing=PHRASE)
    free = llm.chat(USER, FORTY)
    out = streamed(llm, FORTY, mode=mode, speculation=wish)
    close = "<|end|><|start|>assistant<|channel|>final<|message|>" if "gpt" in name else "</think>"
    ends = llm.tokenizer.encode(PHRASE + close, add_special=False)
    assert out.token_ids[: most + len(ends)] == [*free.token_ids[:most], *ends]
    metrics = out.metrics
    assert (metrics.mode, metrics.thinking_tokens) == ("deep*", most) and metrics.thinking_ended == "budget"
    assert out.reasoning == llm.tokenizer.decode(free.token_ids[:most]) + PHRASE and out.text
    assert "<|" not in out.reasoning.replace("<|extra", "") + out.text.replace("<|extra", "")


def test_gpt_oss_thinks_less_in_fast_and_more_in_deep(llms: dict[str, LLM]) -> None:
    llm = llms["gpt-oss-opened"]
    for mode, level in (("fast", "low"), ({"thinking": "on"}, "high"), ({"thinking": "auto"}, "medium")):
        out = streamed(llm, TWENTY, mode=mode)
        assert out.prompt is not None and f"Reasoning: {level}\n" in out.prompt
        assert out.prompt.endswith(ANALYSIS), "a model that cannot do without may think"
        assert (out.text, out.metrics.thinking_tokens) == ("", 20)
    none = llm.chat(USER, FORTY, mode={"base": "fast", "thinking_budget": 0})
    assert none.metrics.thinking_tokens == 0 and none.reasoning == "" and none.text


def test_an_earlier_answer_is_written_as_final(llms: dict[str, LLM]) -> None:
    chat: list[Any] = [*USER, {"role": "assistant", "content": "so"}, *USER]
    out = llms["gpt-oss"].chat(chat, TWENTY)
    assert out.prompt is not None and "<|start|>assistant<|channel|>final<|message|>so<|end|>" in out.prompt
    out = llms["gpt-oss"].chat(BEGUN, TWENTY)
    assert out.prompt is not None and out.prompt.endswith("final<|message|>It is")
    assert out.text and not out.reasoning


def test_beside_tools_an_answer_under_a_grammar_may_spell_marks(llms: dict[str, LLM]) -> None:
    spelled = "a<|channel|>final<|message|>b"
    form = SamplingParams(max_tokens=60, grammar={"choice": [spelled]})
    for kwargs in ({}, {"tools": {"look": {"type": "object"}}}):
        out = llms["gpt-oss"].chat(BEGUN, form, chat_template_kwargs=kwargs)
        assert (out.reasoning, out.text, out.finish_reason) == ("", spelled, "stop")


@pytest.mark.parametrize(("name", "said"), [
    *((name, None) for name in (*SWITCHED, "gpt-oss")),
    *((name, "mode 'fast' has no thought here, but the chat") for name in THINKERS),
    *((name, "the chat template has no thinking switch: mode 'fast' ch") for name in SILENT),
])  # fmt: skip
def test_a_model_without_a_switch_says_so_once(
    folders: dict[str, Path], name: str, said: str | None, logged: list[str]
) -> None:
    with open_llm(folders[name]) as llm, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", FastslowWarning)
        deep = llm.chat(USER, TWENTY).prompt
        fast = [llm.chat(USER, TWENTY, mode="fast").prompt for _ in range(2)]
    assert len(warned) == (name in THINKERS)
    assert name not in SILENT or fast == [deep] * 2
    lines = [line for line in logged if "switch" in line]
    assert [line[: len(said or "")] for line in lines] == ([said] if said else [])


def test_variables_of_a_call(llms: dict[str, LLM]) -> None:
    llm = llms["gpt-oss"]
    out = streamed(llm, TWENTY, mode="fast", chat_template_kwargs={"reasoning_effort": "medium"})
    assert out.prompt is not None and "Reasoning: medium\n" in out.prompt
    for name, level in {"minimal": "low", "low": "low", "medium": "medium", "max": "high"}.items():
        asked = llm.chat(USER, TWENTY, mode={"effort": name})
        assert asked.prompt is not None and f"Reasoning: {level}\n" in asked.prompt
    each: list[Any] = [{"reasoning_effort": level} for level in ("low", "high")]
    both = llm.chat([USER, USER], TWENTY, chat_template_kwargs=[*each], progress=False)
    assert ["Reasoning: low" in str(out.prompt) for out in both] == [True, False]


@pytest.mark.parametrize(("prompt", "given", "said"), [
    (USER, 5, "chat_template_kwargs=5 must be a dict of the chat template's variables"),
    (USER, {1: 2}, "chat_template_kwargs={1: 2} must be a dict"),
    (USER, {"effort": "low"}, "chat_template_kwargs: the chat template reads no variable 'ef"),
    ([5, 6], {"reasoning_effort": "low"}, "chat_template_kwargs are for messages"),
])  # fmt: skip
def test_variables_that_do_not_fit(llms: dict[str, LLM], prompt: Any, given: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        llms["gpt-oss"].generate(prompt, TWENTY, chat_template_kwargs=given)
    assert str(caught.value).startswith(said)


def test_text_prompts_may_end_inside_a_channel(llms: dict[str, LLM]) -> None:
    llm = llms["gpt-oss"]
    prompt = f"<|start|>assistant{ANALYSIS}"
    mode = {"base": "deep", "thinking_budget": 4}
    for wish in ("off", "self"):
        out = llm.generate(prompt, FORTY, mode=mode, speculation=wish, allow_special=True)
        assert out.metrics.thinking_tokens == 4 and out.reasoning and out.text
        ids = llm.generate(out.prompt_token_ids, FORTY, mode=mode, speculation=wish)
        assert (ids.token_ids, ids.reasoning) == (out.token_ids, out.reasoning)

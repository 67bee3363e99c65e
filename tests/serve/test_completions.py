"""/v1/completions, /v1/models, /tokenize and /detokenize."""

from typing import Any

import httpx
import pytest
from serve_tools import events_of

from fastslow import LLM, SamplingParams

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("prompt", ["The quick", ["The quick", "Every expert"], [80, 81, 82], [[80, 81], [90]]])
def test_every_form_of_prompt_streamed_or_not(http: httpx.Client, llm: LLM, prompt: Any, n: int) -> None:
    fields = {"temperature": 1, "seed": 5, "max_tokens": 12, "n": n, "prompt": prompt}
    whole = ask(http, **fields)
    chunks = events_of(http.post("/v1/completions", json={**fields, "stream": True}).text)
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    prompts = prompt if several else [prompt]
    sampling = SamplingParams(temperature=1, seed=5, max_tokens=12, n=n)
    outs = [llm.generate(one, sampling, speculation="off") for one in prompts]
    choices = [choice for out in outs for choice in out.choices]
    assert [one["text"] for one in whole["choices"]] == [choice.text for choice in choices]
    assert [one["index"] for one in whole["choices"]] == list(range(len(choices)))
    for i, choice in enumerate(choices):
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == i]
        assert "".join(one["text"] for one in mine) == choice.text
        assert mine[-1]["finish_reason"] == choice.finish_reason
    assert whole["usage"]["prompt_tokens"] == sum(len(out.prompt_token_ids) for out in outs)
    assert whole["usage"]["completion_tokens"] == sum(len(one.token_ids) for one in choices)


def test_echo_and_logprobs_of_the_prompt(http: httpx.Client, llm: LLM) -> None:
    prompt = "The quick 世"
    choice = ask(http, **GREEDY, prompt=prompt, echo=True, logprobs=2)["choices"][0]
    out = llm.generate(prompt, SamplingParams(**GREEDY, logprobs=2, prompt_logprobs=2))
    assert choice["text"] == prompt + out.text
    places = choice["logprobs"]
    tokens = [*out.prompt_token_ids, *out.token_ids]
    assert [len(places[name]) for name in places] == [len(tokens)] * 4
    assert places["token_logprobs"][0] is None and places["top_logprobs"][0] is None
    assert out.prompt_logprobs is not None and out.prompt_logprobs[1] is not None
    assert places["token_logprobs"][1] == pytest.approx(out.prompt_logprobs[1][tokens[1]], abs=1e-4)
    assert places["text_offset"][0] == 0 and places["text_offset"] == sorted(places["text_offset"])
    assert places["text_offset"][len(out.prompt_token_ids)] == len(prompt)
    for offset, token in zip(places["text_offset"], places["tokens"]):
        rest = choice["text"][offset:].lstrip("\ufffd")  # bytes that are no character
        assert token.startswith(("bytes:", "<|")) or rest.startswith(token)


def test_streamed_log_probabilities_are_those_of_the_whole(http: httpx.Client) -> None:
    whole = ask(http, **GREEDY, prompt="Every", logprobs=1)["choices"][0]["logprobs"]
    answer = http.post("/v1/completions", json={**GREEDY, "prompt": "Every", "logprobs": 1, "stream": True})
    parts = [chunk["choices"][0]["logprobs"] for chunk in events_of(answer.text)]
    for name in ("tokens", "text_offset"):
        assert [value for part in parts if part for value in part[name]] == whole[name]


@pytest.mark.parametrize(("fields", "said"), [
    ({"suffix": "end"}, "field 'suffix' is unknown"), ({"best_of": 2}, "best_of=2 must be at most n=1"),
    ({"prompt": []}, "prompt is empty"), ({"prompt": ["a", ""]}, "prompt is empty"),
    ({"prompt": "a", "n": 17}, "n=17 must be at most 16"),
    ({"prompt": ["a"] * 9, "n": 2}, "n=2 for each of 9 prompts must be at most 16"),
    ({"prompt": [99999]}, "prompt token 0"), ({"prompt": [99999], "echo": True}, "99999"),
    ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs are for chats"),
])  # fmt: skip
def test_what_is_refused(http: httpx.Client, fields: dict[str, Any], said: str) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", **GREEDY, **fields})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    names = [model["id"] for model in listed["data"]]
    assert names == ["tiny", "tiny:fast", "tiny:deep", "tiny:auto", "tiny:brief"]
    one = http.get("/v1/models/tiny").json()
    assert one == listed["data"][0] and one["max_model_len"] == 512
    assert one["thinks"] and "fast" in one["modes"] and one["default_mode"] == "deep"
    assert not any("modes" in other for other in listed["data"][1:]), "they are said once"
    assert one["default_max_tokens"] == 512, "what the context holds of 8,192"
    assert one["modes"]["brief"]["sampling"] == {"max_tokens": 3, "temperature": 0}
    missing = http.get("/v1/models/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_tokenize_and_back(http: httpx.Client, llm: LLM) -> None:
    assert llm.tokenizer is not None
    made = http.post("/tokenize", json={"prompt": "你好 fox", "return_token_strs": True}).json()
    assert made["tokens"] == llm.tokenizer.encode("你好 fox")
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"]) and made["max_model_len"] == 512
    assert http.post("/detokenize", json={"tokens": made["tokens"]}).json() == {"prompt": "你好 fox"}
    chat = [{"role": "user", "content": "hi"}]
    thinking, quiet = (
        http.post("/tokenize", json={"messages": chat, "mode": mode}).json()["tokens"] for mode in ("deep", "fast")
    )
    assert thinking != quiet
    for wrong in ({}, {"prompt": "a", "messages": chat}):
        assert http.post("/tokenize", json=wrong).status_code == 400
    for token in (320, -1, True):
        assert http.post("/detokenize", json={"tokens": [token]}).status_code == 400

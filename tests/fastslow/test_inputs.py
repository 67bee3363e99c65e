"""Bad input is refused at the door: one sentence with the field, the value and the limit."""

import inspect
import math
import re
from collections import UserList
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_dense, write_moge
from gate import open_llm
from tokenizers_tiny import write_bpe

from fastslow import FastslowWarning
from fastslow.engine.params import Mode, Params, SamplingParams, Speculation, shown
from fastslow.llm import LLM

VOCAB = 320
OPTIONS = {"max_model_len": 40}
USER = {"role": "user", "content": "hi"}


def refused(pattern: str, call: Any, *arguments: Any, **options: Any) -> None:
    """The call raises a ValueError of one sentence, in which the pattern is found."""
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message and len(message) < 280, message
    assert type(caught.value) is ValueError, type(caught.value)


OUTSIDE: dict[str, tuple[Any, ...]] = {  # values of another type, or out of bounds
    "max_tokens": (0, -5, "5", 5.0, True, None), "min_tokens": (-1,),
    "temperature": (-0.1, 101, math.nan, math.inf, "hot", False), "top_k": (-2, 2.5), "top_p": (0, 1.01, "x"),
    "min_p": (-0.1, 1.5, []), "repetition_penalty": (0, 1e-40, 101), "presence_penalty": (2.1, "1"),
    "frequency_penalty": (-2.1, None), "logit_bias": ([1, 2],), "stop": (5,), "stop_token_ids": (3,),
    "ignore_eos": (1,), "seed": (-1, 2**63, 1.0), "n": (0, 129), "logprobs": (-1, 1001, True),
    "prompt_logprobs": (-1, "2"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_bounds_of_sampling_parameters(name: str) -> None:
    for value in OUTSIDE[name]:
        refused(rf"^{name}={re.escape(repr(value))} must be ", SamplingParams, **{name: value})


@pytest.mark.parametrize(("kind", "fields", "pattern"), [
    (SamplingParams, {"max_tokens": 10**5000}, r"^max_tokens=<int> must be"),
    (SamplingParams, {"min_tokens": 6, "max_tokens": 5}, "^min_tokens=6 exceeds max_tokens=5$"),
    (SamplingParams, {"temperature": math.nan}, r"^temperature=nan must be a finite number$"),
    (SamplingParams, {"logit_bias": {1: 101}}, r"^logit_bias\[1\]=101 must be less than or eq"),
    (SamplingParams, {"logit_bias": {"cat": 1}}, r"^logit_bias\.cat='cat' must be a valid int"),
    (SamplingParams, {"stop": ["a", ""]}, r"^stop\[1\]='' must have at least 1 character$"),
    (SamplingParams, {"temprature": 1.0}, r"^field 'temprature' is unknown; did you mean 'tem"),
    (SamplingParams, {"xyzzy": 1.0}, r"^field 'xyzzy' is unknown; known: .*top_p"),
    (SamplingParams, {"top_k": "k" * 500}, r"^top_k='k+\.\.\. must be a valid integer$"),
    (Speculation, {"nodes": 65}, r"^nodes=65 must be less than or equal to 64$"),
    (Mode, {"name": ""}, r"^name='' must have at least 1 character$"),
    (Mode, {"base": "x" * 257}, r"^base='x+\.\.\. must have at most 256 characters$"),
    (Mode, {"closing": "x" * 1001}, r"^closing='x+\.\.\. must have at most 1000 characters$"),
    (Mode, {"closing": "a\ud800"}, r"^closing='a\\ud800' must be a valid string"),
    (Mode, {"thinking": "maybe"}, r"^thinking='maybe' must be 'off', 'on' or 'auto'$"),
    (Mode, {"sampling": {"top_p": 2}}, r"^sampling\.top_p=2 must be less than or equal to 1$"),
], ids=lambda value: shown(value)[:40])  # fmt: skip
def test_sentences_of_fields(kind: type[Params], fields: dict[str, Any], pattern: str) -> None:
    refused(pattern, kind, **fields)


def test_an_int_is_a_number_too_and_nothing_changes_afterwards() -> None:
    params = SamplingParams(temperature=1, top_p=1, stop="x", logit_bias={1: 2})
    assert (params.temperature, params.stop, params.logit_bias) == (1, ("x",), {1: 2})
    with pytest.raises(ValueError, match="frozen"):
        params.max_tokens = 0


@pytest.mark.parametrize(
    ("prompt", "pattern"),
    [
        ("", r"^prompt='' is empty"), ([], r"^prompt=\[\] is empty"), (["ok", ""], r"^prompt='' is empty"),
        ([[1, 2], []], r"^prompt=\[\] is empty"),
        ([1, VOCAB], rf"^prompt token 1 is {VOCAB}, not an id in 0\.\.{VOCAB - 1}$"),
        ([-1], r"^prompt token 0 is -1, not an id in 0\.\.319$"), ([True, 1], r"^prompt token 0 is True, not an id"),
        ([1, 2.0], r"^prompt token 1 is 2.0, not an id"), ([1, "a"], r"^prompt token 1 is 'a', not an id"),
        ([[1], 2], r"^prompt token 0 is \[1\], not an id"), ([[1], [10**30]], r"not an id in 0\.\.319$"),
        (5, r"^prompt must be text.*, not int$"), (b"hi", r"^prompt must be text.*, not bytes$"),
        ([b"hi"], r"^prompt must be text.*, not bytes$"),
        ({"role": "user", "content": "x"}, r"^prompt must be text.*, not dict$"),
        (np.array([1, 2]), r"^prompt must be text.*, not ndarray$"),
        ([5] * 40, r"^prompt has 40 tokens; .* fit the context of 40$"),
        ("word " * 100, r"^prompt has \d+ tokens; .* fit the context of 40$"),
        ("a\ud800b", r"lone surrogate at position 1"),
        ([{}], r"^messages\[0\]\.role is None; it must be one of system, user"),
        ([{"role": "user"}], r"^messages\[0\]\.content is missing"),
        ([{"role": "user", "content": None}], r"^messages\[0\]\.content is missing"),
        ([USER, {"role": "user", "content": 5}], r"^messages\[1\]\.content is a int"),
        ([[USER], [{"role": "x", "content": ""}]], r"^messages\[0\]\.role is 'x'"),
    ],
    ids=lambda value: shown(value)[:40],
)  # fmt: skip
def test_prompts(llm: LLM, prompt: Any, pattern: str) -> None:
    refused(pattern, llm.generate, prompt)
    if not isinstance(prompt, list):  # a list of prompts is refused by stream for being one
        refused(pattern, llm.stream, prompt)


def test_chats(llm: LLM) -> None:
    refused(r"is empty", llm.chat, [])
    for messages in (5, USER, [USER, "hi"]):
        refused(r"^messages=.* must be text or a list", llm.chat, messages)
        refused(r"^messages=.* must be text or a list", llm.stream_chat, messages)


OVERLONG = "x" * 5000 + ".json"


@pytest.mark.parametrize(("options", "pattern"), [
    ({"sampling": {"max_tokens": 0}}, r"^max_tokens=0 must be greater than or equal to 1$"),
    ({"sampling": 0}, r"^sampling=0 must be SamplingParams, a dict of their fields by name, or N"),
    ({"sampling": [{1: 2}]}, r"^sampling=\{1: 2\} must be SamplingParams, a dict of their fields"),
    ({"sampling_defaults": 5}, r"^sampling_defaults=5 must be a dict of fields of SamplingParams"),
    ({"sampling_defaults": {1: 2}}, r"^sampling_defaults=\{1: 2\} must be a dict of fields of Sa"),
    ({"speculation": OVERLONG}, r"^x+ cannot be read: File name too long$"),
    ({"speculation": {"drafter": "head", "head": OVERLONG}}, r"^head x+ cannot be read: .* too"),
    ({"sampling": [None, None]}, r"^sampling has 2 entries for 1 prompts$"),
    ({"sampling": {"logit_bias": {VOCAB: 1.0}}}, r"^logit_bias: token id 320 is outside"),
    ({"sampling": {"stop_token_ids": (5, 999)}}, r"^stop_token_ids: token id 999 is outside"),
    ({"mode": "dep"}, r"^mode='dep' is unknown; did you mean 'deep'\?$"),
    ({"mode": "zzz"}, r"^mode='zzz' is unknown; known: auto, deep, fast$"),
    ({"mode": 5}, r"^mode=5 must be a name or a Mode, not int$"),
    ({"mode": Mode(groups=5)}, r"^mode 'custom': groups=5 is outside 0\.\.4$"),
    ({"speculation": "ngarm"}, r"^drafter='ngarm' is unknown; did you mean 'ngram'\?$"),
    ({"speculation": ""}, "^drafter='' is unknown; known: auto, head, model, mtp, ngram, off, self"),
    ({"speculation": {"model": 5}}, r"^model=5 must be"),
    ({"speculation": {"x": 5}}, r"^field 'x' is unknown"),
    ({"speculation": 4}, r"^speculation must be a name or Speculation, not int$"),
    ({"timeout": 0}, r"^timeout=0 must be greater than 0$"),
    *(({"timeout": x}, "^timeout=.* must be") for x in (True, "5", math.nan, 1e300, 10**5000)),
    ({"memory_key": "k" * 257}, r"^memory_key=.* must have at most 256 characters$"),
    ({"memory_key": ""}, r"^memory_key='' must have at least 1 character$"),
    ({"speculation": "model"}, r"^drafter='model' needs model=PATH"),
    ({"speculation": {"drafter": "self", "groups": 5}}, "speculation groups=5 is outside 0..4"),
    ({"speculation": {"drafter": "self", "experts": 2}}, "^speculation experts=2 must be left"),
    ({"speculation": {"drafter": "model", "model": "/no"}}, r"^model='/no' is no folder"),
], ids=lambda value: shown(value)[:40])  # fmt: skip
def test_options(llm: LLM, options: dict[str, Any], pattern: str) -> None:
    refused(pattern, llm.generate, "hello", **options)


def test_unknown_keywords_and_none_as_the_default(llm: LLM) -> None:
    for call in (llm.generate, llm.chat, llm.stream, llm.stream_chat, llm.submit):
        refused(r"^option 'mod' is unknown; did you mean 'mode'\?$", call, "hello", mod="deep")
        refused(r"^option 'xyzzy' is unknown; known: .*mode, .*speculation", call, "hello", xyzzy=1)
        belongs = r"^option 'max_tokens' belongs .* sampling=SamplingParams\(max_tokens=\.\.\.\)$"
        refused(belongs, call, "hello", max_tokens=5)
    few = SamplingParams(max_tokens=3)
    usual = llm.generate("hello", few)
    none = llm.generate("hello", few, mode=None, speculation=None, timeout=None)
    both = llm.generate(["hello"] * 2, few, mode=[None, "fast"], speculation=["off", None])
    made = [(out.token_ids, out.metrics.mode, out.metrics.drafter) for out in (usual, none, *both)]
    assert made[0] == made[1] and made[2][1:] == ("deep", "off") and made[3][1:] == ("fast", "auto")
    *_, last = llm.stream("hello", few, mode=None, speculation=None)
    assert last.output is not None and last.output.token_ids == usual.token_ids


def test_any_sequence_is_a_list(llm: LLM) -> None:
    few = SamplingParams(max_tokens=2)
    right = llm.generate([7, 8], few).token_ids
    ids: list[np.integer[Any]] = [np.int64(7), np.int32(8)]
    assert llm.generate(ids, few).token_ids == llm.generate((7, 8), few).token_ids == right
    many: Any = llm.generate
    outs = many(UserList(["a", "b c"]), few, mode=UserList(["fast", "deep"]))
    assert [(out.prompt, out.metrics.mode) for out in outs] == [("a", "fast"), ("b c", "deep")]
    many = llm.chat
    chats = many(UserList(["hi", UserList([USER]), [USER, USER]]), few)
    assert [out.prompt for out in chats] == ["hi ", "hi ", "hi hi "]


def test_what_cannot_fit_is_refused_before_it_is_tokenised(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llm.tokenizer is not None
    encoded: list[str] = []
    monkeypatch.setattr(llm.tokenizer, "encode", encoded.append)
    most = llm.tokenizer.longest * 40
    long = r"^prompt has \d+ characters, which cannot fit the context of 40: no token is longer than 13$"
    refused(long, llm.generate, "x" * (most + 1))
    refused(long, llm.submit, "x" * (most + 1))
    refused(long, llm.chat, [{"role": "user", "content": "x" * most}, USER])
    refused(r"^messages has 41 entries; .* context of 40$", llm.generate, [USER] * 41)
    assert not encoded

    class Ids(UserList[int]):
        def __getitem__(self, place: Any) -> Any:
            assert place < 2, "looked at"
            return 5

    refused(r"^prompt has 100000 tokens; .* context of 40$", llm.generate, Ids(range(100_000)))


def test_what_a_dense_model_without_a_tokenizer_cannot_do(tiny_dense: Path) -> None:
    with open_llm(tiny_dense) as dense:
        refused(r"has no tokenizer: give the prompt as token ids", dense.generate, "text")
        refused(r"has no tokenizer", dense.chat, "text")
        refused(r"^stop strings need a tokenizer", dense.generate, [5], SamplingParams(stop=("x",)))
        refused(r"^drafter='self' needs a model with routed groups", dense.generate, [5], speculation="self")
        refused(r"groups=3 must be left out", dense.generate, [5], mode=Mode(groups=3))
        assert dense.generate([5], SamplingParams(max_tokens=2), mode="fast").text == ""


def test_draft_models_with_other_tokens(llm: LLM, tmp_path: Path) -> None:
    """Tokens that both have are drafted; a padded vocabulary with the same tokens is drafted from as it is."""
    for name, tokens, vocab in (("size", 0, 96), ("narrow", 320, 300), ("wide", 320, 384)):
        if tokens:
            write_bpe(tmp_path / name, vocab_size=tokens)
        write_dense(tmp_path / name, vocab=vocab, num_hidden_layers=1)
    write_bpe(tmp_path / "pieces", vocab_size=300)
    write_moge(tmp_path / "pieces", vocab=VOCAB, num_hidden_layers=1)
    for name, said in (("size", "its vocab_size is 96, .* 320"), ("narrow", "token ids reach to 319, and .* is 300")):
        wish = Speculation(drafter="model", model=str(tmp_path / name))
        with pytest.raises(ValueError, match=f"^draft model .*{name}' cannot draft .*: {said}"):
            llm.generate("hello", speculation=wish)
    few = SamplingParams(max_tokens=6)
    plain = llm.generate("The quick", few, speculation="off").token_ids
    for name in ("pieces", "wide"):
        wish = Speculation(drafter="model", model=str(tmp_path / name), nodes=3)
        drafted = llm.generate("The quick", few, speculation=wish)
        assert drafted.token_ids == plain and drafted.metrics.drafted > 0


@pytest.mark.parametrize(("options", "pattern"), [
    ({"model": ""}, r"^model='' is empty$"),
    ({"max_running": True}, r"^max_running=True must be a valid integer$"),
    ({"remember": "always"}, r"^remember='always' must be a valid boolean or 'by_key'$"),
    ({"max_runing": 3}, r"^option 'max_runing' is unknown; did you mean 'max_running'\?$"),
    ({"temperature": 3}, r"^option 'temperature' belongs into sampling=SamplingParams"),
    ({"model": "smollm2-mog"}, r"did you mean 'smollm2-moge'\?$"),
    ({"kv_memory": 1000}, r"kv_memory is 1000 B, but one request with a context of 512 tokens"),
    ({"kv_memory": "3 bananas"}, r"kv_memory is '3 bananas', but must be like 2GiB"),
    ({"kv_memory": 1.5}, r"kv_memory is a share of 1.5, but must be above 0 and at most 1"),
    ({"max_model_len": 513}, r"^max_model_len=513 is outside 2\.\.512$"),
    ({"prompt_rows": -(10**5000)}, r"^prompt_rows=<int> must be greater than or equal to 1$"),
    ({"dtype": "float8"}, r"float8"),
    ({"device": "abacus"}, r"abacus"),
    ({"modes": OVERLONG}, r"^x+ cannot be read: File name too long$"),
    ({"auto": OVERLONG}, r"^x+ cannot be read: File name too long$"),
    ({"modes": {1: {}}}, "^modes: modes has 1, which must be a preset's name$"),
], ids=lambda value: shown(value)[:40])  # fmt: skip
def test_arguments_of_the_engine(folder: Path, options: dict[str, Any], pattern: str) -> None:
    refused(pattern, LLM, **{"model": folder, "progress": False, **options})


def test_a_context_without_room_is_halved(tmp_path: Path, logged: list[str]) -> None:
    folder = write_moge(tmp_path, vocab=VOCAB, max_position_embeddings=20_000)
    with pytest.warns(FastslowWarning, match="20000 tokens has no room: texts have at most 5000"):
        llm = LLM(folder, kv_memory=512 * 9_999, progress=False)
    with llm:
        assert llm.max_model_len == 5_000
        refused("has 5001 tokens.*the context of 5000", llm.generate, [5] * 5001)
    assert sum("20000 tokens has no room" in line for line in logged) == 1
    for few in ({"max_model_len": 10_000}, {"kv_memory": 512 * 2_400}):
        refused("kv_memory is .*, but one request", LLM, folder, **{"kv_memory": 512 * 9_999, "progress": False, **few})


def test_every_argument_of_the_engine_refuses_another_type() -> None:
    names = [name for name in inspect.signature(LLM.__init__).parameters if name != "self"]
    assert len(names) > 10
    for name in names:
        refused(rf"^{name}=", LLM, **{name: 1j})


class Broken:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise KeyError("broken")


@pytest.mark.parametrize("value", [["x" * 100_000], Broken()], ids=["long", "broken"])
def test_messages_show_a_value_in_short(llm: LLM, value: Any) -> None:
    for name in ("timeout", "memory_key", "allow_special"):
        refused(f"^{name}=.* must be", llm.submit, "hello", **{name: value})
    refused("^max_tokens=.* must be", SamplingParams, max_tokens=value)
    refused("^prompt_rows=.* must be", LLM, "x", prompt_rows=value)
    refused("^prompt token 0 is ", llm.generate, [value])
    refused("^messages=.* must be text", llm.chat, {"role": value})
    refused(r"^messages\[0\].role is ", llm.generate, [{"role": value, "content": "x"}])

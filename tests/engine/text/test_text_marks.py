"""Special tokens that messages and texts only spell are text; what the template writes are marks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_templates import write_marked
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers
from tokenizers_tiny import SPECIAL, edit, write_around, write_bpe, write_spm

from fastslow.engine.text.chat_parts import Marks, chat_parts
from fastslow.engine.text.messages import Message
from fastslow.engine.text.templates import ChatTemplate, load_template
from fastslow.engine.text.thought import ThoughtTags
from fastslow.engine.text.tokenizer import load_tokenizer

THINK = ThoughtTags("<think>", "</think>")
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + (m.content | trim) + '<|im_end|>\n' }}"
    "{% if m.data %}{{ m.data | tojson }}{{ m.data | tojson(ensure_ascii=true) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Kind:
    """A tokenizer with the template beside it."""

    def __init__(self, folder: Path, tags: ThoughtTags | None) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.template: ChatTemplate = load_template(folder, self.tokenizer)
        self.marks = Marks(self.tokenizer, tags)

    def parts(self, messages: list[Message], marks: bool = True) -> list[str]:
        return chat_parts(self.template, messages, "auto", self.marks if marks else None)

    def ids(self, messages: list[Message], marks: bool = True) -> list[int]:
        parts = self.parts(messages, marks)
        return self.tokenizer.encode_parts(parts, self.template.add_special)

    def special(self, ids: list[int]) -> list[str]:
        hidden = self.tokenizer.special_ids
        return [self.tokenizer.piece(token) or "" for token in ids if token in hidden]


def write_llama(folder: Path) -> None:
    """SentencePiece's spaces in a tokenizer.json: a space before every text and after every mark."""
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
    pieces |= {letter: 256 + i for i, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz_|<>/[]:.!\n")}
    library = Library(models.BPE(pieces, [], byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHATML, "eos_token": SPECIAL[2], "bos_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


WRITERS: dict[str, tuple[Callable[[Path], Any], ThoughtTags, str]] = {
    "bpe": (lambda folder: write_bpe(folder, CHATML), THINK, "<|im_end|>"),
    "llama": (write_llama, THINK, "<|im_end|>"),
    "spm": (write_spm, ThoughtTags("[unused16]", "[unused17]"), "[unused10]"),
    "spm control": (lambda f: write_spm(f, chat_template=CHATML), THINK, "</s>"),
}


@pytest.fixture(scope="module", params=WRITERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kind(name: str, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("kind")
    write, tags, _ = WRITERS[name]
    write(folder)
    return Kind(folder, tags)


def user(content: str, **more: Any) -> list[Message]:
    return [{"role": "user", "content": content, **more}]


def test_what_a_user_spells_is_text(name: str, kind: Kind) -> None:
    end = WRITERS[name][2]
    plain = kind.ids(user("a"))
    for content in (f"a{end}b", end, f"{end}{end} c{end}", f"\n\n{end}", "<unk><s></s>"):
        spelled = kind.ids(user(content))
        assert kind.special(spelled) == kind.special(plain)
        text = kind.tokenizer.decode(spelled, skip_special=False)
        assert content.strip() in text
        own = kind.tokenizer.decode(plain, False).count(end)
        assert text.count(end) == content.count(end) + own
    read = kind.tokenizer.encode(kind.template.render(user(f"a{end}b")), kind.template.add_special)
    assert kind.ids(user(f"a{end}b"), marks=False) == read
    assert len(kind.special(read)) > len(kind.special(plain))


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_thinking_tags_are_marks_in_what_the_assistant_said(tmp_path: Path, role: str) -> None:
    write_bpe(tmp_path, CHATML)
    kind = Kind(tmp_path, THINK)
    thought = "<think>hm</think>so<|im_end|>"
    asked = kind.ids([{"role": role, "content": thought}, *user("a")])
    said = kind.ids([{"role": "assistant", "content": thought}, *user("a")])
    marks = kind.special(kind.ids([{"role": role, "content": "so"}, *user("a")]))
    assert kind.special(asked) == marks and kind.special(said) == [marks[0], "<think>", "</think>", *marks[1:]]


@given(data=st.data())
def test_no_text_makes_a_mark_and_others_have_the_tokens_that_they_always_had(kind: Kind, data: st.DataObject) -> None:
    text = st.text(st.sampled_from("ab <|im_end>/s[]unused10\n\U000f0000é"), max_size=20)
    content = data.draw(text.filter(lambda x: len(kind.marks.parts(x)) == 1))
    messages = user(content, data={"x": [content]})
    ids = kind.tokenizer.encode(kind.template.render(messages), kind.template.add_special)
    assert kind.ids(messages) == ids
    assert kind.tokenizer.encode_parts([content]) == kind.tokenizer.encode(content)
    some = ["<|im_end|>", "<|im", "_start|>", "</s>", "<s", ">", "[unused10]", "[unus", "ed9]"]
    content = "".join(data.draw(st.lists(st.sampled_from([*some, "<think>", " ", "a", "\n"]), max_size=8)))
    assert kind.special(kind.ids(user(content))) == kind.special(kind.ids(user("a")))
    ids = kind.tokenizer.encode_parts(kind.marks.parts(content), add_special=False)
    assert not kind.special(ids)
    assert kind.tokenizer.decode(ids, skip_special=False).lstrip(" ") == content.lstrip(" ")


def test_nested_texts_and_escaped_ones(tmp_path: Path) -> None:
    write_bpe(tmp_path, CHATML)
    kind = Kind(tmp_path, THINK)
    plain = kind.ids(user("a", data={"x": ["b"]}))
    spelled = kind.ids(user("a", data={"x": ["<|im_end|>"], "<|im_start|>": 1}))
    assert kind.special(spelled)[:2] == kind.special(plain)[:2]
    assert kind.tokenizer.decode(spelled, False).count('{"x": ["<|im_end|>"]') == 2


@pytest.mark.parametrize("place", ["", "x "])
def test_what_is_added_around_a_text_stays_around_it(tmp_path: Path, place: str) -> None:
    write_around(tmp_path, "<|endoftext|> $A <|im_end|>")
    tokenizer = load_tokenizer(tmp_path)
    text = f"{place}<think> y"
    ids = tokenizer.encode_parts(Marks(tokenizer, THINK).parts(text))
    assert (ids[0], ids[-1], tokenizer.decode(ids[1:-1], False)) == (0, 2, text)
    assert tokenizer.special_ids.isdisjoint(ids[1:-1])


def prefixed(content: str) -> list[Message]:
    return [*user("a"), {"role": "assistant", "content": content, "prefix": True}]


@pytest.mark.parametrize("begun", ["The answer", "", "is ", "<think>hm", "a\n"])
def test_a_prefix_is_begun_and_not_ended(tmp_path: Path, begun: str) -> None:
    write_bpe(tmp_path, CHATML)
    kind = Kind(tmp_path, THINK)
    assert "".join(kind.parts(prefixed(begun))) == kind.template.render(user("a")) + begun
    write_spm(tmp_path / "spm")
    pangu = Kind(tmp_path / "spm", None)
    assert "".join(pangu.parts(prefixed(begun))) == pangu.template.render(user("a")) + begun


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "{{ messages[-1].content * 2 }}", "{{ messages | length }}"]
)
def test_a_template_that_hides_the_prefix(tmp_path: Path, source: str) -> None:
    write_bpe(tmp_path, source)
    with pytest.raises(ValueError, match="does not write the assistant's prefix as it stands"):
        Kind(tmp_path, None).parts(prefixed("x"))


def test_a_mark_of_one_character_cannot_be_cut(tmp_path: Path) -> None:
    write_marked(tmp_path, CHATML, ("¶",))
    assert Marks(load_tokenizer(tmp_path)).parts("a¶b<think>") == ["a¶b<", "think>"]


def test_letters_that_a_tokenizer_takes_for_others(tmp_path: Path) -> None:
    write_bpe(tmp_path, CHATML)
    path = tmp_path / "tokenizer.json"
    every = [{**token, "normalized": True} for token in json.loads(path.read_text("utf-8"))["added_tokens"]]
    edit(path, added_tokens=every, normalizer={"type": "NFKC"})
    kind = Kind(tmp_path, THINK)
    wide = "\uff1c|im_end|\uff1e"  # full-width < and >
    rendered = kind.template.render(user(f"hi {wide}"))
    plain = kind.ids(user("hi"))
    assert len(kind.special(kind.tokenizer.encode(rendered, False))) > len(kind.special(plain))
    assert kind.special(kind.ids(user(f"hi {wide}"))) == kind.special(plain)
    assert kind.ids(user("hi \uff1c")) == kind.tokenizer.encode(kind.template.render(user("hi \uff1c")), False)


def test_messages_that_nest_without_end(tmp_path: Path) -> None:
    write_bpe(tmp_path, CHATML)
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    with pytest.raises(ValueError, match="^messages nest too deep$"):
        Kind(tmp_path, None).parts(user("x", data=deep))

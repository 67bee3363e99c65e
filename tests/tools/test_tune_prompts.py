from pathlib import Path

import pytest
from cli_tools import write_lines
from refusals import refused

from fastslow.engine.params import Speculation
from fastslow.settings import add_settings, read_settings, write_settings
from fastslow.tools.prompts import read_prompts
from fastslow.tools.tune.candidates import family, grid, label, read_lengths


def test_every_kind_of_line_is_read_and_a_limit_is_spread(tmp_path: Path) -> None:
    """A line ends at a newline only: JSON may hold other ends of lines as they are."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        '{"prompt": "one\u2028a"}\r\n\n{"question_id": 3, "turns": ["two", "no"]}\n{"question": "three\u0085"}\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "four"}]}\n'.encode()
    )
    prompts = read_prompts(path)
    assert [p[-1]["content"] for p in prompts] == ["one\u2028a", "two", "three\u0085", "four"]
    assert [m["role"] for m in prompts[3]] == ["system", "user"]
    assert prompts[1] == [{"role": "user", "content": "two"}]
    path = write_lines(tmp_path / "p.jsonl", *({"prompt": f"{i}"} for i in range(10)))
    assert [p[0]["content"] for p in read_prompts(path, 5)] == ["0", "2", "4", "6", "8"]
    assert len(read_prompts(path, 99)) == 10
    refused("limit=0 must be at least 1", read_prompts, path, 0)


@pytest.mark.parametrize(("line", "said"), [
    ("{oops", "line 2: no JSON"),
    pytest.param("[" * 100_000, "line 2: no JSON that can be read", id="deep"),
    ("[1]", "line 2: a JSON object is needed, not list"),
    ('{"text": "x"}', "line 2: it has none of the fields messages, prompt, turns, question"),
    ('{"prompt": ""}', "line 2: prompt must be a text that is not empty"),
    ('{"turns": []}', "line 2: turns must be a list with at least one text"),
    ('{"turns": [7]}', "line 2: turns must be a text"),
    ('{"messages": "hi"}', "line 2: messages must be a list, not str"),
    ('{"messages": []}', "line 2: messages is empty"),
    ('{"messages": [{"role": "elf", "content": "x"}]}', "line 2: messages.*role is 'elf'"),
])  # fmt: skip
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    refused(rf"^(?!.*\n).*{said}", read_prompts, write_lines(tmp_path / "p.jsonl", {"prompt": "fine"}, line))


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (b"\n", "has no prompt"), (b"\xff\xfe", "cannot be read")]
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "p.jsonl").write_bytes(content)
    refused(said, read_prompts, tmp_path / "p.jsonl")


def test_lengths_are_read_or_refused_and_a_setting_has_a_name() -> None:
    assert read_lengths("0, 2,adaptive,4,2") == [0, 2, None, 4]
    for text, said in [
        ("x", "'x' is neither a number nor 'adaptive'"), ("-1", "'-1' is neither"),
        ("65", "nodes=65 must be less than or equal to 64"), (",", "names no length"),
    ]:  # fmt: skip
        refused(said, read_lengths, text)
    drafters = [Speculation(drafter="ngram"), Speculation(drafter="off")] * 2
    assert [label(s) for s in grid(drafters, [0, 2, 4])] == ["ngram · 2", "ngram · 4"]
    assert label(Speculation(drafter="self", groups=2, nodes=3)) == "self, groups=2 · 3"
    assert family(Speculation(drafter="model", model="small")) == "model, model=small"
    assert label(Speculation(drafter="ngram", nodes=0)) == "plain"


def test_settings_come_back(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    for setting in (
        Speculation(drafter="ngram+self", nodes=6, groups=2),
        Speculation(drafter="off", nodes=0),
        Speculation(drafter="model", model="some/folder"),
        Speculation(drafter="suffix|head", nodes=None, width=2, layers=(0, 2)),
    ):
        write_settings(path, "a model", setting, {"ratio": 1.5})
        assert read_settings(path) == setting and read_settings(str(path)) == setting
    for text, said in (("{}", "no settings file"), ("x", "not valid JSON")):
        path.write_text(text)
        refused(said, add_settings, path, "tiny", auto={})
        assert path.read_text() == text


@pytest.mark.parametrize(("content", "said"), [
    ("[]", "must hold a JSON object, not a list"),
    ("{}", "field 'version' is missing"),
    ('{"version": 2, "speculation": {}}', "version=2 must be 1"),
    ('{"version": 1}', "field 'speculation' is missing"),
    ('{"version": 1, "speculation": {"nodes": 99}}', "speculation.nodes=99 must be less"),
    ('{"version": 1, "speculation": {"node": 9}}', "field 'speculation.node' is unknown; did you mean"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_bytes(content.encode("latin-1"))
    refused(rf"^(?!.*\n).*tuned.json.*{said}", read_settings, path)

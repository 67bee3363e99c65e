"""`fastslow generate`: what goes where, files of prompts, tuned settings, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES, write_marked
from checkpoints import write_moge
from cli_tools import call, printed, record, records, refusal, write_lines
from safetensors import SafetensorError

from fastslow import RequestHandle, llm
from fastslow.engine.backends.cpu.compiled import kernel_cache
from fastslow.tools.cli.answering.prompt_file import in_order

pytest_plugins = ("tiny_models",)

ASKED = "What is 4827 + 396?"  # abacus thinks it out and says 5223
ABACUS = ("--model", "abacus", "--kv-memory", "4MiB")


GENERATE = ("generate", *ABACUS)


# What goes where


def test_standard_output_gets_answers_or_json_alone() -> None:
    done = call(*GENERATE, ASKED)
    assert done.out == "5223\n" and "4827+396" in done.err and "mode deep | " in done.err
    done = call(*GENERATE, ASKED, "--no-thinking")
    assert done.out == "5223\n" and "4827+396" not in done.err and "tokens of thought" in done.err
    none, low = (record(*GENERATE, ASKED, "--effort", name) for name in ("none", "low"))
    assert (none["mode"], none["reasoning"], low["mode"]) == ("fast*", "", "deep*")
    assert "4827+396" in low["reasoning"]
    found = refusal(*GENERATE, ASKED, "--effort", "high", "--mode", "fast")
    assert "base='fast' and effort='high', which is mode 'deep', contradict each other" in found
    done = call(*GENERATE, ASKED, "--json", "--speculation", "off")  # no steps are measured
    found = json.loads(done.out)
    assert (found["text"], found["mode"]) == ("5223", "deep")
    assert found["prompt_tokens"] > 0 and "4827+396" in found["reasoning"] and done.err == ""
    done = call(*GENERATE, ASKED, "--n", 3)
    assert done.out == "5223\n" * 3 and "answer 2 of 3" in done.err
    first, second = record(*GENERATE, ASKED, "--n", 2, "--logprobs", 1)["choices"]
    assert first["text"] == second["text"] == "5223" and len(second["logprobs"]) == second["tokens"]


# Files of prompts


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.txt", "What is 1 + 1?", "", f"  {ASKED}", "What is 20*3?")
    found = records(*GENERATE, "--file", path)
    assert [(one["index"], one["text"]) for one in found] == [(0, "2"), (1, "5223"), (2, "60")]
    for one in found:
        assert one["reasoning"] and one["finish_reason"] == "stop" and one["mode"] == "deep"
        assert one["tokens"] > 0 and one["prompt_tokens"] > 0 and one["tokens_per_second"] > 0


def test_json_lines_bring_their_own_mode_and_sampling(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "p.jsonl", {"messages": [{"role": "user", "content": ASKED}]},
        {"prompt": ASKED, "mode": "fast", "id": 7}, {"prompt": ASKED, "sampling": {"max_tokens": 3, "logprobs": 0}},
        {"prompt": ASKED, "mode": {"base": "deep", "thinking_budget": 2}},
    )  # fmt: skip
    deep, fast, short, bounded = records(*GENERATE, "--file", path, "--max-tokens", 96)
    assert (deep["text"], deep["mode"], fast["mode"]) == ("5223", "deep", "fast")
    assert (short["tokens"], short["finish_reason"], len(short["logprobs"])) == (3, "length", 3)
    assert bounded["mode"] == "deep*" and len(bounded["reasoning"]) < len(deep["reasoning"])
    modes: list[Any] = ["deep", {"base": "deep"}, {"base": "deep", "thinking": "on"}]
    write_lines(path, *({"prompt": ASKED, "mode": mode} for mode in modes))
    first, second, own = records(*GENERATE, "--file", path, "--thinking", "off")
    assert [(one["mode"], one["reasoning"]) for one in (first, second)] == [("deep*", "")] * 2
    assert "4827+396" in own["reasoning"], "what the line says goes first"


@pytest.mark.parametrize(("lines", "said"), [
    (['{"prompt": "a"}', "{"], "line 2: no JSON"),
    (['{"prompt": "a"}', "", '{"promt": "b"}'], "line 3: field 'promt' is unknown"),
    (['{"prompt": "a", "sampling": {"top_p": 5}}'], "line 1: sampling.top_p=5 must be"),
    (['{"prompt": "a"}', '{"prompt": "b", "mode": "fats"}'], "line 2: mode='fats' is unknown"),
    (['{"prompt": "a"}', json.dumps({"prompt": "b" * 3000})], "line 2: prompt has "),
    ([""], "has no prompt"),
    (['{"prompt": "a", "max_tokens": 3}'], "field 'max_tokens' belongs into \"sampling\""),
    (['{"prompt": "a", "messages": []}'], "messages and prompt are two prompts: give one"),
    (['{"prompt": "a \\ud800"}'], "no text in UTF-8"),
])  # fmt: skip
def test_a_wrong_line_is_named_before_anything_runs(tmp_path: Path, lines: list[str], said: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", *lines)
    found = refusal(*GENERATE, "--file", path)
    assert found.startswith(f"error: prompts file {str(path)!r}") and said in found


def test_a_request_that_fails_does_not_take_the_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastslow.output import GenerationError

    real = RequestHandle.result

    def failing(handle: RequestHandle, timeout: float | None = None) -> Any:
        output = real(handle, timeout)
        if "1 + 1" not in str(output.prompt):
            return output
        object.__setattr__(output.choices[0], "error", "it broke")
        raise GenerationError("1 request(s) failed", [output])

    monkeypatch.setattr(RequestHandle, "result", failing)
    done = call(*GENERATE, "--file", write_lines(tmp_path / "p.txt", "What is 1 + 1?", ASKED))
    first, second = map(json.loads, done.out.splitlines())
    assert done.code == 1 and first["error"] == "it broke"
    assert second["text"] == "5223" and "error" not in second


def test_variables_of_the_chat_template(tmp_path: Path) -> None:
    write_moge(tmp_path, vocab=write_marked(tmp_path, TEMPLATES["qwen3"], ()), num_hidden_layers=1, hidden_size=32)

    def length(*more: object) -> int:
        asked = ("generate", "--model", tmp_path, "--kv-memory", "4MiB", "--max-tokens", 2)
        return int(records(*asked, "--json", *more)[-1]["prompt_tokens"])

    off, on = (f'{{"enable_thinking": {value}}}' for value in ("false", "true"))
    assert length("Hi", "--template-kwargs", off) != length("Hi", "--template-kwargs", on)
    lines = ({"prompt": "Hi"}, {"prompt": "Hi", "chat_template_kwargs": {"enable_thinking": False}})
    path = write_lines(tmp_path / "p.jsonl", *lines)
    assert length("--file", path, "--template-kwargs", on) == length("Hi", "--template-kwargs", off)
    for wrong in ("[1]", "{", '{"a'):
        assert "--template-kwargs: " in refusal("generate", "--model", tmp_path, "Hi", "--template-kwargs", wrong)


# Drafts


def test_tuned_settings_a_corpus_and_a_drafter(tmp_path: Path) -> None:
    tuned, corpus = tmp_path / "tuned.json", tmp_path / "c.safetensors"
    tuned.write_text(json.dumps({"version": 1, "speculation": {"drafter": "suffix", "nodes": 3}}))
    answer = record(*GENERATE, ASKED)
    turns = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": f"<think>{answer['reasoning']}</think>{answer['text']}"},
    ]
    answers = write_lines(tmp_path / "a.jsonl", {"messages": turns})
    printed("corpus", "build", answers, "-o", corpus, "--model", "abacus")
    drafted = {}
    for name, options in {
        "tuned": ("--speculation", tuned),
        "named": ("--speculation", "ngram"),
        "off": ("--speculation", tuned, "--nodes", 0),
        "corpus": ("--speculation", tuned, "--corpus", corpus),
    }.items():
        found = record(*GENERATE, ASKED, *options)
        assert found["text"] == "5223"
        drafted[name] = found["metrics"]
    assert drafted["tuned"]["drafter"] == "suffix" and drafted["named"]["drafter"] == "ngram"
    assert drafted["off"]["drafted"] == 0 and drafted["corpus"]["accepted"] > drafted["tuned"]["accepted"]


# What is refused


@pytest.mark.parametrize(("arguments", "said"), [
    ((), "give a PROMPT (- is standard input) or --file"),
    (("Hello", "--file", "p.txt"), "give a PROMPT (- is standard input) or --file"),
    (("",), "PROMPT is empty"),
    ((" \n",), "PROMPT is empty"),
    (("-",), "standard input is empty"),
    (("--file", "none.txt"), "prompts file 'none.txt' cannot be read"),
    (("Hello", "--logprobs", "2"), "--logprobs are for programs"),
    (("Hello", "--speculation", "none.json"), "settings file 'none.json' cannot be read"),
    (("Hello", "--speculation", "a.json", "--drafter", "off"), "give one of them"),
    (("Hello", "--corpus", "none.safetensors"), "none.safetensors cannot be read"),
    (("Hello", "--drafter", "self", "--corpus", "c"), "--corpus is for drafter suffix"),
    (("Hello", "--drafter", "ngram", "--draft-groups", "0"), "--draft-groups is for drafter"),
    (("Hello", "--modes", "none.json"), "none.json cannot be read"),
    (("Hello", "--nodes", "99"), "nodes=99 must be less than or equal to 64"),
    (("Hello", "--mode", "dep"), "mode='dep' is unknown; did you mean 'deep'?"),
    (("Hello", "--groups", "9"), "groups=9 is outside 0..8"),
    (("Hello", "--drafter", "model"), "drafter='model' needs model=PATH"),
    (("Hello", "--raw", "--system", "Be brief."), "--system needs the chat template"),
    (("Hello", "--kv-memory", "1KiB"), "kv_memory is 1.0 KiB"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert said in refusal(*GENERATE, *arguments)


@pytest.mark.parametrize("command", [("generate", "-"), ("chat",)])
def test_a_closed_standard_input_is_one_sentence(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastslow", *command, *ABACUS], capture_output=True, text=True, check=False,
        preexec_fn=lambda: os.close(0),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: standard input is closed: there is nothing to read\n"


def test_bytes_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = b"ab\xff".decode("utf-8", "surrogateescape")
    assert "PROMPT is no text in UTF-8: see its character 3" in refusal(*GENERATE, lone)
    assert "--system is no text in UTF-8" in refusal(*GENERATE, "a", "--system", lone)
    monkeypatch.setattr("sys.stdin", io.StringIO(lone))
    assert "standard input is no text in UTF-8" in refusal(*GENERATE, "-")


def test_ctrl_c_keeps_finished_answers_after_an_unfinished_one() -> None:
    class Handle:
        def __init__(self, done: bool) -> None:
            self.done = done

        def result(self) -> Handle:
            if not self.done:
                raise KeyboardInterrupt
            return self

        def cancel(self) -> None: ...

    handles: Any = [Handle(done) for done in (True, False, True, False)]
    shown = []
    with pytest.raises(KeyboardInterrupt):
        for index, _ in in_order(handles):
            shown.append(index)
    assert shown == [0, 2]


# First starts


EARLY = """
import sys
from fastslow.engine.backends.cpu.compiled import kernel_cache
from fastslow.tools.cli.app import main
kernel_cache.prepare = lambda device: sys.exit(3 if "torch" in sys.modules else 4)
main(["generate", "hi"])
"""


def test_the_compiler_starts_before_torch_is_imported() -> None:
    assert subprocess.run([sys.executable, "-c", EARLY], check=False).returncode == 4


def test_the_compiler_starts_before_the_model_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def resolved(*_: object) -> None:
        raise ValueError(f"after {asked}")

    monkeypatch.setattr(llm, "prepare", asked.append)
    monkeypatch.setattr(llm, "resolve_model", resolved)
    with pytest.raises(ValueError, match=r"after \['cpu'\]"):
        llm.LLM("smollm2-moge", device="cpu")


@pytest.mark.parametrize(("error", "says"), [
    (ImportError("libtorch_cpu.so: failed to map"), "cpu.so: failed to map: .*not enough memo"),
    (MemoryError(), "error: MemoryError: there is not enough memory"),
    (SafetensorError("No space left on device"), "error: No space left on device\n"),
])  # fmt: skip
def test_what_the_system_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(kernel_cache, "prepare", fail)
    done = call("generate", "hi")
    assert done.code == 1 and re.search(says, done.err), done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1

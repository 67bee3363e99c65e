import io
import json
import os
import pty
import readline
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import pytest
from checkpoints import write_dense, write_family, write_moge
from cli_tools import call, printed, record, refusal
from gguf import GGMLQuantizationType
from gguf_tools import write_gguf
from gguf_writer import matrices
from tokenizers_tiny import write_bpe
from tune_tools import TEMPLATE, VOCAB

import fastslow
from fastslow.output import Piece
from fastslow.policies.auto import LinearModeRouter
from fastslow.serve.api.keys import KeyFile, KeyRing
from fastslow.tools.cli import screen
from fastslow.tools.cli.screen import StreamedAnswer

pytest_plugins = ("tiny_models",)


def test_dash_reads_standard_input_and_raw_leaves_the_template_out(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens(*arguments: object) -> object:
        return record(*("generate", "--model", endless, "--max-tokens", 6, *arguments))["token_ids"]

    chat = tokens("Hello")
    assert chat == tokens("user: Hello\nassistant: ", "--raw") != tokens("Hello", "--raw")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    assert tokens("-") == chat


def test_a_draft_model_alone_means_drafter_model(endless: Path, tmp_path: Path) -> None:
    write_bpe(tmp_path, TEMPLATE, VOCAB)
    write_dense(tmp_path, vocab=VOCAB)
    done = call("generate", "Hello", *(endless, "--draft-model", tmp_path, "--max-tokens", 6))
    assert done.out and " | drafter " not in done.out
    *_, last = done.err.splitlines()
    assert last.startswith("mode deep | drafter model | drafted ")
    assert all(word in last for word in ("accepted ", " tokens/step", " tokens/s"))


def test_inspect_shows_what_a_gguf_file_takes_tokenizer_and_presets(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "qwen3")
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(GGMLQuantizationType.Q8_0))
    memory = record("inspect", file)["memory"]
    assert memory["gguf"]["weights"] == file.stat().st_size < memory["float32"]["weights"]
    shown = printed("inspect", file)
    assert "gguf (its own)" in shown and "bfloat16 (its own)" not in shown
    write_bpe(tmp_path, TEMPLATE, VOCAB)
    write_moge(tmp_path, vocab=VOCAB)
    (tmp_path / "fastslow.json").write_text('{"modes": {"middling": {"groups": 3}}}')
    shown = printed("inspect", tmp_path)
    assert all(words in shown for words in ("tokenizer.json, 320 ids", "middling", "3 of 4"))
    assert "on, where" not in shown
    modes = record("inspect", tmp_path)["modes"]
    assert modes["deep"]["words"]["thinking"] == "as the model likes, which has no switch"
    assert "thinking on" not in modes["deep"]["description"]


def test_mode_auto_goes_by_a_file(endless: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.json"
    selector = LinearModeRouter(weights={"digits": 1.0}, bias=-1.5)
    tuned.write_text(json.dumps({"auto": selector.model_dump()}), "utf-8")
    few = ("--model", endless, "--max-tokens", 4, "--mode", "auto", "--auto", tuned)
    for asked, taken in (("Why 7?", "mode fast"), ("hi 77", "mode deep")):
        last = call("generate", asked, *few).err.splitlines()[-1]
        assert last.startswith(taken) and f"why: {taken.removeprefix('mode ')}: digits" in last


def test_modes_say_what_they_mean(endless: Path, tmp_path: Path) -> None:
    own = tmp_path / "my.json"
    own.write_text('{"modes": {"brief": {"base": "deep", "thinking_budget": 64}}}')
    shown = printed("modes", endless, "--modes", own)
    for words in ("fast", "deep", "brief", "1 of 4", "all 4", "at most 64", "% of", "greedy"):
        assert words in shown, words
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "45")
        screen.console.cache_clear()  # one that was made before may have its width from then
        narrow = printed("modes", endless, "--modes", own)
    screen.console.cache_clear()
    assert "…" not in narrow and narrow.count("escalation") == 4, "as many tables as it takes"
    found = record("modes", endless, "--modes", own)
    assert found["brief"]["words"]["budget"].startswith("at most 64 tokens of thought; ")
    assert found["brief"]["thinking_budget"] == 64 and found["fast"]["active_parameters"] > 0
    assert "cannot be read" in refusal("modes", endless, "--modes", tmp_path / "none.json")


def test_a_call_on_the_command_line_changes_its_mode(endless: Path, tmp_path: Path) -> None:
    own = tmp_path / "my.json"
    own.write_text('{"modes": {"brief": {"base": "deep", "sampling": {"max_tokens": 7}}}}')
    options = ("--model", endless, "--modes", own, "--mode", "brief")
    found = record("generate", "Once <think>", "--raw", *options, *("--thinking-budget", 3, "--thinking", "auto"))
    assert found["token_ids"][3] == 4 and len(found["token_ids"]) == 7  # </think>
    metrics = found["metrics"]
    assert (metrics["mode"], metrics["thinking_tokens"]) == ("brief*", 3)
    assert metrics["thinking_ended"] == "budget" and found["reasoning"] and found["text"]
    steered = json.dumps({"thinking_budget": 9, "warn_at": 0.5, "warning": "Soon.", "thinking": "on"})
    raw = ("generate", "Once <think>", "--raw", "--model", endless, "--max-tokens", 20)
    metrics = record(*raw, "--mode", steered)["metrics"]
    assert (metrics["mode"], metrics["thinking_tokens"]) == ("deep*", 9) and metrics["put_in_tokens"]
    for wrong, said in (
        (("--mode", '{"warn_at": 2}'), "warn_at=2 must be"),
        (("--mode", '{"warm_at": 0.5}'), "warm_at"),
        (("--mode", "{warn_at"), "--mode: no JSON"),
        (("--mode", '{"groups": 2}', "--groups", 2), "--groups and --mode both say groups: give one"),
        (("--thinking", "maybe"), "thinking='maybe' must"),
        (("--thinking-budget", -1), "thinking_budget=-1 must be greater than or equal to 0"),
    ):
        assert said in refusal("generate", "Once", *options, *wrong)


def test_help_and_version_load_nothing_heavy() -> None:
    assert printed("--version") == f"fastslow {fastslow.__version__}\n"
    code = (
        "import sys\nimport fastslow.draft.registry\nfrom fastslow.tools.cli.app import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in ("generate", "chat", "inspect", "quantize"))


def _hear_ctrl_c() -> None:
    """A shell starts background jobs, this test run perhaps, deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _program(command: str, model: Path, *options: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fastslow", command, "--model", str(model), *options],
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - it only sets a signal
        **streams,
    )


@pytest.mark.slow
def test_ctrl_c_keeps_what_has_come(endless: Path) -> None:
    options, pipe = ("--max-tokens", "60000", "--drafter", "off", "Hello"), subprocess.PIPE
    process = _program("generate", endless, *options, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and (first + rest).endswith(b"\n") and b"Traceback" not in errors


class Terminal:
    """A chat on a terminal."""

    def __init__(self, model: Path, *options: str) -> None:
        self.place, theirs = pty.openpty()
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.chat = _program("chat", model, *options, **streams, close_fds=True)
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.chat.kill()
        os.close(self.place)

    def expect(self, *parts: bytes, more: int = 0) -> bytes:
        """Read until each part has come, in order, and then so many bytes more; returns these."""
        seen, deadline = b"", time.monotonic() + 60
        for part in (*parts, None):
            while len(seen) < more if part is None else part not in seen:
                assert time.monotonic() < deadline, f"{part!r} did not come after {seen!r}"
                if select.select([self.place], [], [], 1)[0]:
                    seen += os.read(self.place, 4096)
            seen = seen if part is None else seen.partition(part)[2]
        return seen

    def type(self, text: bytes) -> None:
        os.write(self.place, text)

    def end(self) -> bytes:
        """Read what comes until the chat is over."""
        seen = b""
        while select.select([self.place], [], [], 60)[0]:
            try:
                seen += os.read(self.place, 4096)
            except OSError:
                break  # the other side is closed
        assert self.chat.wait(timeout=60) == 0
        return seen


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_stops_the_answer_and_not_the_chat(endless: Path) -> None:
    with Terminal(endless, "--max-tokens", "60000") as terminal:
        terminal.expect(b"> ")
        terminal.type(b"Hello\n")
        terminal.expect(b"Hello\r\n", more=64)  # more than the line editor's farewell
        terminal.chat.send_signal(signal.SIGINT)
        terminal.expect(b"stopped", b"> ")
        terminal.type(b"/fast\n")
        terminal.expect(b"Mode fast", b"> ")
        terminal.type(b"\x04")  # Ctrl-D
        terminal.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed", [b"one\ntwo\nthree\n", b"\x1b[200~one\ntwo\nthree\x1b[201~\r"], ids=["raw", "bracketed"]
)
def test_pasted_lines_are_one_message(endless: Path, typed: bytes) -> None:
    """From a terminal that brackets what is pasted, and from one that does not."""
    gnu = "libedit" not in (readline.__doc__ or "")
    with Terminal(endless, "--max-tokens", "3", "--drafter", "off") as terminal:
        terminal.expect(*([b"\x1b[?2004h"] if gnu else []), b"> ")  # asks for brackets
        terminal.type(typed)
        seen = terminal.expect(b"mode deep | ")
        terminal.type(b"/quit\n")
        assert b"mode deep" not in seen + terminal.end(), "there was one answer"


def test_piped_questions_are_answered_one_a_line(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/fast\nHello again\n/nope\n"))
    done = call("chat", endless, "--max-tokens", 4)
    assert done.code == 0 and " | " not in done.out and "Mode fast" not in done.out, "answers alone"
    lines = done.err.splitlines()
    modes = [line.split(" | ")[0] for line in lines if " | drafter " in line]
    assert modes == ["mode deep", "mode fast"] and "/nope is no command" in done.err


def test_a_thought_is_parted_from_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    answer = StreamedAnswer(screen.console(), screen.errors())
    for piece in (Piece(reasoning="hm"), Piece(reasoning="m"), Piece(text="4"), Piece(text="2")):
        answer.add(piece)
    answer.end()
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("42\n", "hmm\n\n")
    assert (answer.text, answer.reasoning) == ("42", "hmm")


def test_a_key_is_written_where_only_its_owner_reads(tmp_path: Path) -> None:
    keys, out = tmp_path / "keys.json", tmp_path / "bot.key"
    add = ("keys", "add", "--file", keys, "--out", out)
    before = os.umask(0)
    try:
        said = printed(*add, "bot")
    finally:
        os.umask(before)
    key = out.read_text("utf-8").removesuffix("\n")
    assert out.stat().st_mode & 0o777 == 0o600 and key not in said
    found = KeyRing(keys).find(key)
    assert found is not None and found.name == "bot" and "exists: name a new file" in refusal(*add, "page")
    assert [stored.name for stored in KeyFile.read(keys).keys] == ["bot"]
    out.unlink()
    assert "is taken" in refusal(*add, "bot") and not out.exists()

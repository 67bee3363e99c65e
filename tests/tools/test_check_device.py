"""`python -m fastslow.tools.check_device`: what passes, what fails, and what it then says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from fake_cuda import RecordingOps
from npu_tools import CHIPS, simulated
from tune_tools import write_prompts
from typer.testing import CliRunner

from fastslow import LLM, Output
from fastslow.draft.registry import DRAFTERS
from fastslow.engine.backends import device as device_module
from fastslow.engine.backends.accelerator import cuda as cuda_module
from fastslow.engine.backends.accelerator.step import PagedStep
from fastslow.engine.families import FAMILIES
from fastslow.engine.model.ffn.router import ExpertChoice
from fastslow.tools.check_device import __main__ as command
from fastslow.tools.check_device import exactness as exactness_file
from fastslow.tools.check_device import families as families_file
from fastslow.tools.check_device.exactness import drafters, exactness
from fastslow.tools.check_device.families import families
from fastslow.tools.check_device.finding import CheckPlan, Finding

LLAMA = "LlamaForCausalLM"


def check(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command.check_device)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def plan_for(folder: Path, device: str = "cpu") -> CheckPlan:
    return CheckPlan(device, "auto", True, folder)


def test_the_cpu_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families_file, "SINGLE", 2)
    path = tmp_path / "report.json"
    code, text = check("cpu", "--quick", "--json", str(path))
    assert code == 0 and f"cpu passed\nreport in {path}" in text, text
    report = json.loads(path.read_text("utf-8"))
    assert report["passed"] and report["complete"] and report["versions"]["torch"]
    exact, recurrent, every = report["parts"]
    assert set(every["figures"]["apart"]) == set(families_file.FAMILIES)
    assert every["figures"]["replays"] == 0, "the CPU records no steps"
    assert exact["figures"]["answers"] == 2 * 3 * len(drafters(Path("head")))
    assert exact["figures"]["wrong"] == recurrent["figures"]["wrong"] == []
    assert exact["figures"]["accepted"] > 100 and recurrent["figures"]["accepted"] > 200


def test_answers_of_a_model_to_its_prompts(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 2)
    code, text = check("cpu", "--quick", "--model", "abacus-draft", "--prompts", str(tmp_path / "prompts.jsonl"))
    assert code == 0 and " 0 wrong" in text and "cpu passed" in text and "families" not in text, text


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_a_simulated_npu(chip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes, and one that gives experts the wrong weights is found out."""

    path = tmp_path / "report.json"
    with simulated(chip, exact=False):
        code, text = check("npu", "--quick", "--json", str(path))
        assert code == 0, text
        ops: Any = type(device_module.paged_ops_for(device_module.choose_device("npu")))
        right = ops.experts

        def halved(own: Any, x: torch.Tensor, chosen: ExpertChoice, *rest: Any) -> torch.Tensor:
            found: torch.Tensor = right(own, x, chosen._replace(weights=chosen.weights / 2), *rest)
            return found

        monkeypatch.setattr(ops, "experts", halved)
        wrong = families(plan_for(tmp_path / "wrong", "npu")).lines[1:-1]
    assert json.loads(path.read_text("utf-8"))["parts"][-1]["figures"]["replays"] > 0
    mixtures = {"PanguProMoEV2ForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM", "Lfm2MoeForCausalLM"}
    mixtures |= {"Qwen3_5MoeForCausalLM", "Qwen3NextForCausalLM", "PanguProMoEForCausalLM"}
    assert {x.split()[1] for x in wrong} == mixtures


UNCHECKED = """DeepseekV2 DeepseekV3 DeepseekV32 GlmMoeDsa Glm4MoeLite Glm4Moe Ernie4_5 Ernie4_5_ Ernie4_5_Moe
Ernie4_5_MoE Exaone4 Granite GraniteMoe GraniteMoeHybrid GraniteMoeShared HunYuanDenseV1 HunYuanMoEV1 MiMo MiniMaxM2
Ministral3 Olmo2 Olmo3 OpenPanguV2 PanguV2MoE Phi3 SeedOss"""  # made of parts that others have, or run by plain torch on a device


def test_every_family_and_drafter_is_checked() -> None:
    known = {x for family in FAMILIES for x in family.architectures}
    others = {f"{x}ForCausalLM" for x in UNCHECKED.split()} | {"Gemma4AssistantForCausalLM"}
    known = {x for x in known if "ForConditional" not in x} - {"Gemma4UnifiedAssistantForCausalLM"}
    assert set(families_file.FAMILIES) == known - others and others <= known, "text parts are known"
    names = [setting.drafter for setting in drafters(Path("head"))]
    assert {part for name in names for part in name.replace("|", "+").split("+")} == {*DRAFTERS} - {"mtp"}
    assert any("+" in name for name in names) and any("|" in name for name in names)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`device="cuda"` runs the GPU's blocks on the CPU, and records as a GPU does; one family is checked."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device_module, "_named", lambda name: torch.device("cpu"))
    monkeypatch.setattr(device_module, "_numbered", lambda device: device)
    monkeypatch.setattr(cuda_module, "CudaOps", RecordingOps)
    monkeypatch.setattr(command, "PARTS", (families,))
    monkeypatch.setattr(families_file, "FAMILIES", {LLAMA: {}})


def _refused(*_: Any) -> Any:
    raise RuntimeError("no")


def _broken(ops: RecordingOps, x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x * torch.nan


@pytest.mark.parametrize(("owner", "name", "instead", "said"), [
    pytest.param(RecordingOps, "unused", None, "19 recorded steps replayed, 0 s", id="right"),
    pytest.param(PagedStep, "fill", lambda *_: None, f"wrong: {LLAMA} differs by", id="old"),
    pytest.param(RecordingOps, "record", _refused, "0 recorded steps replayed, 1", id="none"),
    pytest.param(RecordingOps, "rms_norm", _broken, f"wrong: {LLAMA} differs by nan", id="nan"),
])  # fmt: skip
def test_recorded_steps(
    gpu: None, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, instead: Any, said: str
) -> None:
    """Right ones, some that keep old numbers, none, and some whose numbers are not finite."""
    monkeypatch.setattr(owner, name, instead, raising=False)
    code, text = check("cuda", "--quick")
    assert code == int(instead is not None) and said in text, text


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one drafter change a token of one answer."""
    right = LLM.chat

    def chat(self: LLM, messages: Any, *given: Any, **named: Any) -> Any:
        out = right(self, messages, *given, **named)
        for answer, how in zip(out if isinstance(out, list) else (), named.get("mode", ())):
            if how == "fast" and isinstance(answer, Output):
                answer.choices[0].token_ids[1] += 1
        return out

    monkeypatch.setattr(LLM, "chat", chat)


@pytest.mark.parametrize("slack", [0.0, pytest.param(100.0, marks=pytest.mark.slow)])
def test_a_wrong_token_fails_but_at_a_near_tie(
    liar: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slack: float
) -> None:
    monkeypatch.setattr(CheckPlan, "slack", lambda self, dtype: slack)
    monkeypatch.setattr(exactness_file, "drafters", lambda head: drafters(head)[:2])
    found = exactness(plan_for(tmp_path))
    half, wrong = found.figures["answers"] / 2, len(found.figures["wrong"])
    assert found.passed == (slack > 0) and found.figures["near_ties"] + wrong == half
    assert wrong == (0 if slack else half)
    said = "(best logits within 100)" if slack else "next: run it again with --dtype float32"
    assert said in found.text()


def _good(plan: CheckPlan) -> Finding:
    return Finding("good")


def _raising(plan: CheckPlan) -> Finding:
    raise RuntimeError("the kernel is gone")


def _stopped(plan: CheckPlan) -> Finding:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("parts", "code", "said", "passed"), [
    ((_raising, _good), 1, "RuntimeError: the kernel is gone", [False, True]),
    ((_good, _stopped, _good), 130, "stopped", [True]),
])  # fmt: skip
def test_the_report_has_what_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[Any, ...], code: int, said: str, passed: list[bool]
) -> None:
    """A part that raises fails, and the others run; Ctrl-C ends it with what there is."""
    monkeypatch.setattr(command, "PARTS", parts)
    path = tmp_path / "report.json"
    ended, text = check("cpu", "--json", str(path))
    assert ended == code and said in text and "good: passed" in text
    report = json.loads(path.read_text("utf-8"))
    assert not report["passed"] and report["complete"] == (code == 1)
    assert [x["passed"] for x in report["parts"]] == passed


@pytest.mark.parametrize(("arguments", "said"), [
    (["tpu"], "device 'tpu' is not one of auto, cpu, cuda, npu"),
    (["cuda:9"], "device 'cuda:9' is not on this machine"),
    (["cpu:3"], "device='cpu:3': the CPU has no number"),
    (["cpu", "--dtype", "foo"], "--dtype foo is not one of auto, "),
    (["cpu", "--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    (["cpu", "--prompts", "/nowhere/mine.jsonl"], "/nowhere/mine.jsonl"),
])  # fmt: skip
def test_what_cannot_be_checked_is_refused(arguments: list[str], said: str) -> None:
    code, text = check(*arguments)
    assert code == 2 and said in text and "Traceback" not in text

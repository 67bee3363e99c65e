"""The GPU's building blocks by their numbers, on CPU tensors; and what reaches a GPU, on a fake GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import texts
import torch
from checkpoints import write_moge
from fake_cuda import DEVICE, FakeCuda, RecordingOps
from layout_cases import CASES
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastslow.engine.backends.accelerator.cuda import CudaOps
from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.kv import BLOCK
from fastslow.engine.backends.accelerator.step import PagedStep, Staging, StepPlan
from fastslow.engine.backends.accelerator.weights import Stacked
from fastslow.engine.backends.loader import DTYPES, load_model
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.rows import Rows

CPU = torch.device("cpu")
TOKENS = texts.tokens_of(60)
DECODING = [50, *[1] * 10]


@pytest.fixture(params=[(9, 0)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(request.param)
    fake.install(monkeypatch)
    return fake


def load(folder: Path, dtype: str = "float32", ops: CudaOps | None = None) -> Any:
    """On the fake GPU, or on other building blocks."""
    config = ModelConfig.from_folder(folder)
    with Checkpoint.open(folder, config).reader(progress=False) as read:
        return PagedDecoder(Stacked(config, ops or CudaOps(DEVICE), DTYPES[dtype], CPU, read))


@pytest.fixture(scope="module")
def expected(tiny_dense: Path) -> Tensor:
    return texts.logits(load_model(tiny_dense, "float32", "cpu", progress=False), TOKENS)


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_all_work_is_on_the_models_own_gpu(cuda: FakeCuda, tiny_dense: Path, expected: Tensor) -> None:
    """The engine's thread has GPU 0 as its current one, whatever GPU the model is on."""
    model = load(tiny_dense)
    run = model._run

    def noted(*given: Any) -> Any:
        cuda.say("run")
        return run(*given)

    model._run = noted
    near(texts.logits(model, TOKENS, DECODING), expected)
    assert model.recorder.replays == 9
    for what in ("run", "capture", "replay", "record", "synchronize", "wait"):
        assert {device for said, device in cuda.log if said == what} == {1}, what
    assert cuda.current == 0


def test_a_step_is_recorded_on_a_separate_stream_once_its_shapes_ran_there(cuda: FakeCuda, tiny_dense: Path) -> None:
    """And what other threads do meanwhile, as allocating for a draft model, does not break it."""
    model = load(tiny_dense)
    main, run, ran = cuda.stream, model._run, []

    def noted(step: PagedStep, *rest: Any) -> Any:
        ran.append((len(step.tokens), cuda.stream is main, cuda.capturing))
        return run(step, *rest)

    model._run = noted
    kv, slots = texts.storage(model, 4 * BLOCK), np.arange(0, 4 * BLOCK, BLOCK)
    for _ in range(3):
        model.forward(Rows.of([texts.chunk(TOKENS, 0, 1, slots[i : i + 1]) for i in range(3)]), kv)
    # three rows are filled up to four: these ran before they were recorded
    assert ran == [(3, True, False), (4, False, False), (4, False, True)] and cuda.modes == ["thread_local"]
    assert cuda.said.count("wait") == 2 and cuda.stream is main and model.ops._stream.device == DEVICE


def test_a_capture_that_fails_is_not_tried_again(
    cuda: FakeCuda, tiny_dense: Path, expected: Tensor, logged: list[str]
) -> None:
    model, main = load(tiny_dense), cuda.stream
    cuda.failing = RuntimeError("operation failed due to a previous error during capture\nmore")
    near(texts.logits(model, TOKENS, DECODING), expected)
    assert cuda.said.count("capture") == 1 and cuda.said.count("replay") == 0
    assert model.recorder.failed == 1 and cuda.stream is main, "steps continue where they were"
    lines = [line for line in logged if "cannot be recorded" in line]
    assert len(lines) == 1 and "previous error" in lines[0] and "more" not in lines[0]
    cuda.failing = None
    near(texts.logits(model, TOKENS, DECODING), expected)  # on another cache
    assert model.recorder.replays == 9 and cuda.pools == [0, 1], "a pool that failed is left"


@pytest.mark.parametrize(
    ("cuda", "fast"), [((8, 0), False), ((9, 0), True), ((10, 0), True), ((12, 0), False)], indirect=["cuda"]
)
def test_grouped_products_only_where_the_chip_has_them(
    cuda: FakeCuda, fast: bool, tiny_moge: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    right, calls = F.grouped_mm, []

    def counted(*given: Any, **named: Any) -> Tensor:
        calls.append(1)
        return right(*given, **named)

    monkeypatch.setattr(F, "grouped_mm", counted)
    model = load(tiny_moge, "bfloat16")
    found = texts.logits(model, TOKENS, DECODING)
    exact = texts.logits(load_model(tiny_moge, "float32", "cpu", progress=False), TOKENS)
    assert (found - exact).abs().mean() < 0.1 * exact.std()
    assert bool(calls) == fast == (model.recorder.replays > 0)
    lines = [line for line in logged if "one by one" in line]
    major, minor = cuda.capability
    assert len(lines) == (0 if fast else 1)
    assert fast or f"compute capability is {major}.{minor}, not 9 or 10" in lines[0]


class Crossings(TorchDispatchMode):
    """Copies from the CPU to a device that only has shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        kinds = {x.device.type for x in args if isinstance(x, Tensor)}
        if "device" in named and "empty" not in str(func):
            kinds.add(torch.device(named["device"]).type)
        if {"cpu", "meta"} <= kinds:
            waits = not (named.get("non_blocking") or (len(args) > 2 and args[2]))
            self.found.append((str(func), waits))
        return func(*args, **named)


@pytest.mark.parametrize("case", CASES)
def test_a_steps_numbers_go_to_the_device_in_one_copy_without_a_wait(case: str) -> None:
    plan, rows = StepPlan(CudaOps(CPU), (0, 40), (0, 1, 0), 4, (True, True), True), Rows.of(CASES[case])
    angle = np.ones((len(rows.tokens), 8), dtype=np.float32)
    step = PagedStep.of(rows, (angle, angle), plan.layouts(rows, 16), plan)
    with Crossings() as crossings:
        step.to(torch.device("meta"), Staging(CudaOps(CPU)))
    assert [waits for _, waits in crossings.found] == [False], crossings.found


def test_host_memory_is_pinned_and_waits_for_what_still_reads_it(cuda: FakeCuda) -> None:
    staging = Staging(CudaOps(DEVICE))
    memory = torch.empty(1 << 10, dtype=torch.int8)
    for n in range(3):
        staging.send([torch.full((4,), n)], memory)
        assert int(memory[:8].view(torch.int64)[0]) == n
    assert cuda.said == ["record", *["synchronize", "record"] * 2]
    assert len(cuda.pinned) == 1, "one piece, used again"
    staging.send([torch.zeros(1 << 20, dtype=torch.int8)], torch.empty(1 << 20, dtype=torch.int8))
    assert len(cuda.pinned) == 2 and len(cuda.pinned[1]) >= 1 << 20


def test_widths_that_grouped_products_do_not_take_run_expert_by_expert(tmp_path: Path) -> None:
    """Their rows must be multiples of 16 bytes; and what reads sizes on the host is not recorded."""
    for folder in (
        write_moge(tmp_path / "hidden", hidden_size=36),
        write_moge(tmp_path / "experts", moe_intermediate_size=7),
    ):
        model = load(folder, "bfloat16", RecordingOps(CPU))
        found = texts.logits(model, texts.tokens_of(20), [12, *[1] * 8])
        assert not model.ops.records and model.recorder.replays == 0
        exact = texts.logits(load_model(folder, "float32"), texts.tokens_of(20))
        assert (found - exact).abs().mean() < 0.1 * exact.std()


def test_another_texts_nan_stays_its_own(tiny_moge: Path) -> None:
    """Blocks are read whole, and what a failed request left after a text's end is not finite."""
    model, tokens = load(tiny_moge, ops=RecordingOps(CPU)), texts.tokens_of(12)
    kv = texts.storage(model, 128)
    rest = np.arange(12, 128)
    kv.write(rest, *(torch.full_like(side, torch.nan) for side in kv.read(rest)))
    found = model.forward(Rows.of([texts.chunk(tokens, 0, 12, np.arange(12))]), kv).logits
    assert torch.equal(found, texts.logits(model, tokens))

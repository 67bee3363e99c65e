"""The command `python -m fastslow.tools.check_device`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastslow.engine.backends.device import choose_device
from fastslow.engine.backends.loader import DTYPES
from fastslow.tools.check_device.exactness import exactness
from fastslow.tools.check_device.families import families
from fastslow.tools.check_device.layer import layer_72b
from fastslow.tools.check_device.recorded_steps import recorded_steps
from fastslow.tools.check_device.report import CheckPlan, Finding, report_of
from fastslow.tools.check_device.speed import memory, speed
from fastslow.tools.cli.screen import quiet_log
from fastslow.tools.machine import circumstances
from fastslow.tools.progress import progress_bar, silent

PARTS: tuple[Callable[[CheckPlan], Finding], ...] = (
    exactness,
    families,
    recorded_steps,
    memory,
    speed,
    layer_72b,
)
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def check_device(
    device: Annotated[
        str, typer.Argument(help="cuda, cuda:1, npu, cpu or auto.", metavar="DEVICE")
    ],
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the report here, too.", metavar="PATH")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the small model: auto, float32 ...")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Few texts and small shapes.")] = False,
) -> None:
    """Prove a device on the spot, in under five minutes. Nothing is downloaded.

    \b
    exact     every drafter says what plain decoding says, in fast and deep mode, in mixed batches
    families  a small model of every family computes what plain torch computes
    recorded  recorded steps (CUDA graphs, NPU graphs) compute what steps kernel by kernel compute
    memory    what weights, keys and values take, and that nothing stays when they are let go
    speed     tokens per second at 1, 8 and 64 requests, beside transformers if that is installed
    layer     one layer of openPangu Pro MoE 72B, in floats and in W8A8: time, share of the bandwidth

    \b
    python -m fastslow.tools.check_device cuda
    python -m fastslow.tools.check_device npu --json report.json
    python -m fastslow.tools.check_device cpu --quick

    The exit code is 0 only if every part passes. A part that fails says what to do next. Ctrl-C ends it
    with what there is.
    """
    try:
        place = choose_device(device)
        if dtype not in ("auto", *DTYPES):
            raise ValueError(f"--dtype {dtype} is not one of auto, {', '.join(DTYPES)}")
    except ValueError as error:
        print(f"{error}", file=sys.stderr)
        raise typer.Exit(REFUSED) from None
    if report is not None and not report.absolute().parent.is_dir():
        print(f"--json {report}: there is no folder {report.absolute().parent}", file=sys.stderr)
        raise typer.Exit(REFUSED)
    quiet_log()
    machine = circumstances()
    print(
        f"{place.device}, torch {machine['versions']['torch']}, {machine['machine']['processor']}"
    )
    findings: list[Finding] = []
    complete = False
    with tempfile.TemporaryDirectory(prefix="check_device.") as folder:
        device = place.kind if device == "auto" else device
        plan = CheckPlan(device, place.device, dtype, quick, Path(folder), silent)
        try:
            _run(plan, findings)
            complete = True
        except KeyboardInterrupt:
            print("stopped: what is above is all that was checked", flush=True)
    record = report_of(plan, findings, complete)
    if complete:
        failed = [x.name for x in findings if x.passed is False]
        print(f"{device} FAILED: {'; '.join(failed)}" if failed else f"{device} passed")
    if report is not None:
        report.write_text(json.dumps(record, indent=1), "utf-8")
        print(f"report in {report}")
    if not record["passed"]:
        raise typer.Exit(FAILED if complete else INTERRUPTED)


def _run(plan: CheckPlan, findings: list[Finding]) -> None:
    for n, part in enumerate(PARTS):
        title = part.__name__.replace("_", " ")
        started = time.perf_counter()
        with progress_bar() as moved:

            def say(share: float, what: str, n: int = n, title: str = title) -> None:
                moved((n + share) / len(PARTS), f"{n + 1} of {len(PARTS)}, {title}: {what}")

            say(0.0, "begins")
            try:
                found = part(replace(plan, say=say))
            except Exception as error:  # noqa: BLE001 - the other parts tell more
                advice = "this is a fault of fastslow or of the device's software: report this file"
                said = f"{type(error).__name__}: {error}"
                found = Finding(title, False, [said], {"error": said}, advice)
        found.seconds = round(time.perf_counter() - started, 2)
        findings.append(found)
        print(found.text(), flush=True)


def main() -> None:
    typer.run(check_device)


if __name__ == "__main__":
    main()

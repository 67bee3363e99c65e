"""The command `python -m fastslow.tools.check_device`."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fastslow.engine.backends.device import choose_device
from fastslow.engine.backends.loader import DTYPES
from fastslow.tools.check_device.exactness import exactness, recurrent
from fastslow.tools.check_device.families import families
from fastslow.tools.check_device.finding import CheckPlan, Finding
from fastslow.tools.cli.screen import complain, quiet_log
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import read_prompts

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
PARTS: tuple[Callable[[CheckPlan], Finding], ...] = (exactness, recurrent, families)


def check_device(
    device: Annotated[
        str, typer.Argument(help="cuda, cuda:1, npu, cpu or auto.", metavar="DEVICE")
    ],
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the report here, too.", metavar="PATH")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the small model: auto, float32 ...")] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Few texts.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Compare this model's answers instead of all else.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="What it is asked: JSON lines.", metavar="PATH")
    ] = None,
) -> None:
    """Prove a device on the spot, in under five minutes. Nothing is downloaded.

    \b
    exact      every drafter says what plain decoding says, in fast and deep mode, in mixed batches
    recurrent  the same where layers keep a running state, and the checkpoint's own layer drafts
    families   a small model of every family computes what plain torch computes, recorded steps included

    \b
    python -m fastslow.tools.check_device cuda
    python -m fastslow.tools.check_device npu --json report.json
    python -m fastslow.tools.check_device cpu --quick
    python -m fastslow.tools.check_device cuda --model path/to/model --prompts mine.jsonl

    The exit code is 0 only if every part passes. A part that fails says what to do next. Ctrl-C ends it
    with what there is.
    """
    try:
        place = choose_device(device)
        if dtype not in ("auto", *DTYPES):
            raise ValueError(f"--dtype {dtype} is not one of auto, {', '.join(DTYPES)}")
        if report is not None and not report.absolute().parent.is_dir():
            raise ValueError(f"--json {report}: there is no folder {report.absolute().parent}")
        if prompts is not None:
            read_prompts(prompts)
    except ValueError as error:
        complain(error)
        raise typer.Exit(REFUSED) from None
    quiet_log()
    machine = circumstances()
    torch_version, processor = machine["versions"]["torch"], machine["machine"]["processor"]
    print(f"{place.device}, torch {torch_version}, {processor}")
    findings: list[Finding] = []
    complete = False
    with tempfile.TemporaryDirectory(prefix="check_device.") as folder:
        device = place.kind if device == "auto" else device
        plan = CheckPlan(device, dtype, quick, Path(folder), model, prompts)
        try:
            for part in PARTS if model is None else PARTS[:1]:
                print(f"{part.__name__} ...", flush=True)
                findings.append(_checked(part, plan))
                print(findings[-1].text(), flush=True)
            complete = True
        except KeyboardInterrupt:
            print("stopped: what is above is all that was checked", flush=True)
    failed = [x.name for x in findings if not x.passed]
    if complete:
        print(f"{device} FAILED: {'; '.join(failed)}" if failed else f"{device} passed")
    if report is not None:
        record: dict[str, Any] = {**machine, "device": device, "dtype": dtype, "quick": quick}
        record |= {"complete": complete, "passed": complete and not failed}
        record["parts"] = [asdict(x) for x in findings]
        report.write_text(json.dumps(record, indent=1), "utf-8")
        print(f"report in {report}")
    if failed or not complete:
        raise typer.Exit(FAILED if complete else INTERRUPTED)


def _checked(part: Callable[[CheckPlan], Finding], plan: CheckPlan) -> Finding:
    started = time.perf_counter()
    try:
        found = part(plan)
    except Exception as error:  # noqa: BLE001 - the other parts tell more
        said = f"{type(error).__name__}: {error}"
        found = Finding(part.__name__, False, [said], {"error": said})
        found.advice = "this is a fault of fastslow or of the device's software: report this file"
    found.seconds = round(time.perf_counter() - started, 2)
    return found


if __name__ == "__main__":
    typer.run(check_device)

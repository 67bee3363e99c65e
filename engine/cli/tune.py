"""`fastslow tune`: the best drafter and length for the user's own prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from fastslow.engine.cli import measuring as m
from fastslow.engine.cli import options as o

if TYPE_CHECKING:
    from fastslow.engine.tune.found import Found

INTERRUPTED = 130


def tune(
    prompts: m.MaybePrompts = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Tune the choice between fast and deep instead.")
    ] = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="Tune the groups of the fast mode instead.")
    ] = False,
    tasks: Annotated[
        Path | None,
        typer.Option(help="Graded tasks: JSON lines with prompt and answer.", show_default=False),
    ] = None,
    grading: Annotated[
        str | None,
        typer.Option(
            help="exact, number (the last one) or contains; default: by the look of the answer.",
            rich_help_panel=m.HOW,
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        float,
        typer.Option(
            help="Share of deep's gain, or agreement with it, to keep.", rich_help_panel=m.HOW
        ),
    ] = 0.9,
    model: o.Model = "smollm2-moge",
    minutes: Annotated[
        float, typer.Option(help="Time for everything.", rich_help_panel=m.HOW)
    ] = 10.0,
    batch: Annotated[
        int, typer.Option(help="Requests at a time that you expect.", rich_help_panel=m.HOW)
    ] = 1,
    mode: o.ModeName = "deep",
    drafters: m.Drafters = None,
    lengths: m.Lengths = None,
    draft_model: m.DraftModel = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of an answer; default 128, with --modes 512.",
            rich_help_panel=m.HOW,
            show_default=False,
        ),
    ] = None,
    limit: m.Limit = None,
    temperature: m.Temperature = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Settings file to write.")] = Path(
        "tuned.json"
    ),
    report: Annotated[
        Path | None,
        typer.Option(
            help="Report to write, for a browser; default tuned.html, tuned-modes.html or "
            "tuned-groups.html.",
            show_default=False,
        ),
    ] = None,
    dtype: o.DType = "auto",
    quantization: o.Quantization = "auto",
    device: o.Device = "auto",
    kv_memory: o.KVMemory = None,
    max_model_len: o.MaxModelLen = None,
) -> None:
    """Find the drafter and the length that answer your prompts fastest; with --modes when to think, with
    --groups how many groups of experts the fast mode needs.

    Examples:
      fastslow tune --prompts mine.jsonl
      fastslow tune --modes --tasks graded.jsonl
      fastslow tune --groups --prompts mine.jsonl
      fastslow tune --prompts mine.jsonl --minutes 3 --batch 8 --mode fast
      fastslow tune --prompts mine.jsonl --drafters ngram,self --lengths 2,4,8

    Writes a settings file and one HTML page that shows why. Ctrl-C ends the search early and still
    writes both.
    """
    if modes and groups:
        raise ValueError("--modes and --groups are two things to tune: give one of them")
    kind = "-modes" if modes else "-groups" if groups else ""
    report = Path(f"tuned{kind}.html") if report is None else report
    m.writable(out), m.writable(report)
    wishes = m.Measuring(
        drafters, lengths, draft_model, tokens or (512 if modes else 128), temperature
    )
    if modes or groups:
        from fastslow.engine.cli.tune_modes import Job, tune_groups_job, tune_modes_job

        options = {
            "dtype": dtype,
            "quantization": quantization,
            "device": device,
            "kv_memory": kv_memory,
            "max_model_len": max_model_len,
        }
        job = Job(model, options, wishes.sampling, minutes, batch, keep, limit, out, report)
        work = tune_modes_job if modes else tune_groups_job
        if work(job, prompts, tasks, grading):
            raise typer.Exit(INTERRUPTED)
        return
    if prompts is None:
        raise ValueError("--prompts is missing: a file of JSON lines with what you ask")
    asked = m.prompts_for(prompts, limit)
    from fastslow.engine.cli.screen import quiet_log
    from fastslow.engine.llm import LLM
    from fastslow.engine.tune import found as tuning
    from fastslow.engine.tune.page import page
    from fastslow.engine.tune.tuned import write_settings

    quiet_log()
    with (
        LLM(
            model,
            dtype=dtype,
            quantization=quantization,
            device=device,
            kv_memory=kv_memory,
            max_model_len=max_model_len,
            max_running=max(64, batch),
            remember=False,  # else each prompt would be drafted from its own answer
        ) as llm,
        Watched() as watched,
    ):
        found = tuning.tune(
            llm,
            model,
            asked,
            wishes.settings(llm),
            batch=batch,
            mode=mode,
            sampling=wishes.sampling,
            minutes=minutes,
            tell=watched.tell,
        )
    write_settings(out, model, found.best, found.figures())
    report.write_text(page(found, out.name), "utf-8")
    _say(found, out, report)
    if found.stopped:
        raise typer.Exit(INTERRUPTED)


def _say(found: Found, out: Path, report: Path) -> None:
    from fastslow.engine.cli.screen import console
    from fastslow.engine.tune.headline import headline

    console().print(headline(found))
    console().print(f"settings in {out}, report in {report}", style="dim")


class Watched:
    """A bar on standard error while it is entered, if that is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._progress = Progress(
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("getting ready", total=1.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, share: float, text: str) -> None:
        """So much of the time is gone, and this goes on."""
        self._progress.update(self._task, completed=share, description=text)

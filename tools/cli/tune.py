"""`fastslow tune`: the best drafter and length for the user's own prompts, when to think, with how many groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from fastslow.tools.cli import measuring
from fastslow.tools.cli import options as options_module

if TYPE_CHECKING:
    from fastslow.engine.params import SamplingParams
    from fastslow.tools.tune.tasks import Task
    from fastslow.tools.tune.tune import TuneResult


@dataclass(frozen=True, slots=True)
class TuneJob:
    """What the command line says, checked as far as that goes without a model."""

    model: str
    options: dict[str, Any]  # of LLM
    sampling: SamplingParams
    minutes: float
    batch: int
    keep: float
    limit: int | None
    out: Path
    report: Path


def tune_modes_job(
    job: TuneJob, prompts: Path | None, tasks: Path | None, grading: str | None
) -> bool:
    """Fit the choice between fast and deep; whether Ctrl-C ended it early.

    Raises:
        ValueError: no tasks, or something does not fit.
    """
    if tasks is None:
        raise ValueError("--tasks is missing: a file of JSON lines with prompt and answer")
    if prompts is not None:
        raise ValueError("--modes takes --tasks, which hold the prompts, and no --prompts")
    graded = _tasks(tasks, job.limit, grading)
    from fastslow.llm import LLM
    from fastslow.settings import add_settings
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.tune.modes import ESCALATING, tune_modes
    from fastslow.tools.tune.modes_page import choosing_page, headline

    quiet_log()
    with LLM(job.model, **job.options, remember=False) as llm, Watched() as watched:
        found = tune_modes(
            llm,
            job.model,
            graded,
            sampling=job.sampling,
            keep=job.keep,
            minutes=job.minutes,
            batch=job.batch,
            tell=watched.tell,
        )
    parts: dict[str, Any] = {"auto": found.selector.model_dump(mode="json")}
    if found.escalation is not None:
        escalate = found.escalation.model_dump(mode="json", exclude_none=True)
        preset = {
            "base": found.modes[0],
            "escalate": {**escalate, "to": found.modes[1]},
            "description": f"{found.modes[0]}, begun again in {found.modes[1]} where it is unsure",
        }
        parts["modes"] = {ESCALATING: preset}
    add_settings(job.out, job.model, **parts, measured_modes=found.record())
    job.report.write_text(choosing_page(found, job.out.name), "utf-8")
    console().print(headline(found))
    console().print(f"settings in {job.out}, report in {job.report}", style="dim")
    return found.stopped


def tune_groups_job(
    job: TuneJob, prompts: Path | None, tasks: Path | None, grading: str | None
) -> bool:
    """Measure every number of groups, propose the fast preset; whether Ctrl-C ended it early.

    Raises:
        ValueError: neither prompts nor tasks, or something does not fit.
    """
    if prompts is None and tasks is None:
        raise ValueError("--prompts is missing: a file of JSON lines with what you ask")
    from fastslow.tools.cli.measuring import prompts_for

    graded = [] if tasks is None else _tasks(tasks, job.limit, grading)
    asked = [t.prompt for t in graded] if prompts is None else prompts_for(prompts, job.limit)
    from fastslow.llm import LLM
    from fastslow.settings import add_settings
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.tune.groups import tune_groups
    from fastslow.tools.tune.groups_page import groups_page, headline

    quiet_log()
    with LLM(job.model, **job.options, remember=False) as llm, Watched() as watched:
        found = tune_groups(
            llm,
            job.model,
            asked,
            graded,
            sampling=job.sampling,
            keep=job.keep,
            minutes=job.minutes,
            tell=watched.tell,
        )
    preset = {"fast": {"groups": found.proposed.groups}}
    add_settings(job.out, job.model, modes=preset, measured_groups=found.record())
    job.report.write_text(groups_page(found, job.out.name), "utf-8")
    console().print(headline(found))
    console().print(f"settings in {job.out}, report in {job.report}", style="dim")
    return found.stopped


def _tasks(path: Path, limit: int | None, grading: str | None) -> list[Task]:
    from typing import cast, get_args

    from fastslow.tools.tune.tasks import Grading, read_tasks

    if grading is not None and grading not in get_args(Grading):
        raise ValueError(f"grading={grading!r} must be one of {', '.join(get_args(Grading))}")
    return read_tasks(path, limit, cast("Grading | None", grading))


INTERRUPTED = 130


def tune(
    prompts: measuring.MaybePrompts = None,
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
            rich_help_panel=measuring.HOW,
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        float,
        typer.Option(
            help="Share of deep's gain, or agreement with it, to keep.",
            rich_help_panel=measuring.HOW,
        ),
    ] = 0.9,
    model: options_module.Model = "smollm2-moge",
    minutes: Annotated[
        float, typer.Option(help="Time for everything.", rich_help_panel=measuring.HOW)
    ] = 10.0,
    batch: Annotated[
        int, typer.Option(help="Requests at a time that you expect.", rich_help_panel=measuring.HOW)
    ] = 1,
    mode: options_module.ModeName = "deep",
    drafters: measuring.Drafters = None,
    lengths: measuring.Lengths = None,
    draft_model: measuring.DraftModel = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of an answer; default 128, with --modes 512.",
            rich_help_panel=measuring.HOW,
            show_default=False,
        ),
    ] = None,
    limit: measuring.Limit = None,
    temperature: measuring.Temperature = None,
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
    dtype: options_module.DType = "auto",
    quantization: options_module.Quantization = "auto",
    device: options_module.Device = "auto",
    kv_memory: options_module.KVMemory = None,
    max_model_len: options_module.MaxModelLen = None,
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
    measuring.writable(out), measuring.writable(report)
    wishes = measuring.Measuring(
        drafters, lengths, draft_model, tokens or (512 if modes else 128), temperature
    )
    if modes or groups:
        options = {
            "dtype": dtype,
            "quantization": quantization,
            "device": device,
            "kv_memory": kv_memory,
            "max_model_len": max_model_len,
        }
        job = TuneJob(model, options, wishes.sampling, minutes, batch, keep, limit, out, report)
        work = tune_modes_job if modes else tune_groups_job
        if work(job, prompts, tasks, grading):
            raise typer.Exit(INTERRUPTED)
        return
    if prompts is None:
        raise ValueError("--prompts is missing: a file of JSON lines with what you ask")
    asked = measuring.prompts_for(prompts, limit)
    from fastslow.llm import LLM
    from fastslow.settings import write_settings
    from fastslow.tools.cli.screen import quiet_log
    from fastslow.tools.tune import tune as tune_module
    from fastslow.tools.tune.page import page

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
        found = tune_module.tune(
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


def _say(found: TuneResult, out: Path, report: Path) -> None:
    from fastslow.tools.cli.screen import console
    from fastslow.tools.tune.page import headline

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

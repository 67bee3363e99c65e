"""`fastslow tune`: the best drafter and length for the user's own prompts, when to think, with how many experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fastslow.tools.cli.drafting.measure_options import MEASURED, MeasureOptions
from fastslow.tools.cli.options import (
    PROMPTS,
    check_writable,
    expand_options,
    option,
    shown_option,
)

if TYPE_CHECKING:
    from fastslow.llm import LLM
    from fastslow.tools.prompts import Conversation
    from fastslow.tools.tasks import Task


class TuningOutcome(NamedTuple):
    """What a tuning job hands back: one sentence, an HTML page, and whether Ctrl-C ended it early."""

    headline: str
    page: str
    stopped: bool


@expand_options
def tune(
    options: MeasureOptions,
    prompts: Annotated[Path | None, PROMPTS] = None,
    modes: Annotated[
        bool, typer.Option("--modes", help="Tune the choice between fast and deep instead.")
    ] = False,
    groups: Annotated[
        bool,
        typer.Option(
            "--groups",
            "--experts",
            help="Tune how many groups, or experts, the fast mode runs instead.",
        ),
    ] = False,
    tasks: Annotated[
        Path | None, option("Graded tasks: JSON lines with prompt and answer.")
    ] = None,
    grading: Annotated[
        str | None,
        option(
            "exact, number (the last one) or contains; default: by the look of the answer.",
            MEASURED,
        ),
    ] = None,
    keep: Annotated[
        float, shown_option("Share of deep's gain, or agreement with it, to keep.", MEASURED)
    ] = 0.9,
    minutes: Annotated[float, shown_option("Time for everything.", MEASURED)] = 10.0,
    batch: Annotated[int, shown_option("Requests at a time that you expect.", MEASURED)] = 1,
    mode: Annotated[
        str, option("deep, fast or another preset: see `fastslow modes`.", MEASURED)
    ] = "deep",
    out: Annotated[Path, typer.Option("-o", "--out", help="Settings file to write.")] = Path(
        "tuned.json"
    ),
    report: Annotated[
        Path | None,
        option(
            "Report to write, for a browser; default tuned.html, tuned-modes.html or "
            "tuned-groups.html."
        ),
    ] = None,
) -> None:
    """Find the drafter and the length that answer your prompts fastest; with --modes when to think, with
    --groups how many groups of experts the fast mode needs, or experts where the model has no groups.

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
    check_writable(out)
    check_writable(report)
    options.drafting()  # what does not fit is known before the model is loaded
    if modes and tasks is None:
        raise ValueError("--tasks is missing: a file of JSON lines with prompt and answer")
    if modes and prompts is not None:
        raise ValueError("--modes takes --tasks, which hold the prompts, and no --prompts")
    if prompts is None and (tasks is None or not kind):
        raise ValueError("--prompts is missing: a file of JSON lines with what you ask")
    from fastslow.settings import check_settings
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.prompts import read_prompts
    from fastslow.tools.tasks import read_tasks

    graded = read_tasks(tasks, options.limit, grading) if kind and tasks is not None else []
    asked = [t.prompt for t in graded] if prompts is None else read_prompts(prompts, options.limit)
    quiet_log()
    # an LLM that remembered answers would draft each prompt from its own answer
    check_settings(out, options.model, options.folder)
    load = options.load(max_running=max(64, batch), remember=False)
    with load as llm, progress_bar() as progress:
        how: dict[str, Any] = {
            "minutes": minutes,
            "sampling": options.sampling(512 if modes else 128),
            "report": progress,
        }
        if modes:
            made = _tune_modes(llm, options, graded, out, keep=keep, batch=batch, **how)
        elif groups:
            made = _tune_groups(llm, options, asked, graded, out, keep=keep, **how)
        else:
            made = _tune_speculation(llm, options, asked, out, batch=batch, mode=mode, **how)
    report.write_text(made.page, "utf-8")
    console().print(made.headline)
    console().print(f"settings in {out}, report in {report}", style="dim")
    if made.stopped:
        raise KeyboardInterrupt


def _tune_speculation(
    llm: LLM, options: MeasureOptions, asked: list[Conversation], out: Path, **how: Any
) -> TuningOutcome:
    from fastslow.settings import write_settings
    from fastslow.tools.tune.speculation import tune_speculation
    from fastslow.tools.tune.speculation_report import headline, page

    found = tune_speculation(llm, options.model, asked, options.settings(llm), **how)
    write_settings(out, options.model, found.best, found.figures(), options.folder)
    return TuningOutcome(headline(found), page(found, out.name), found.stopped)


def _tune_modes(
    llm: LLM, options: MeasureOptions, graded: list[Task], out: Path, **how: Any
) -> TuningOutcome:
    from fastslow.settings import add_settings
    from fastslow.tools.tune.modes import tune_modes
    from fastslow.tools.tune.modes_report import headline, page

    found = tune_modes(llm, options.model, graded, **how)
    add_settings(
        out, options.model, options.folder, **found.settings(), measured_modes=found.record()
    )
    return TuningOutcome(headline(found), page(found, out.name), found.stopped)


def _tune_groups(
    llm: LLM,
    options: MeasureOptions,
    asked: list[Conversation],
    graded: list[Task],
    out: Path,
    **how: Any,
) -> TuningOutcome:
    from fastslow.settings import add_settings, check_settings
    from fastslow.tools.tune.groups import tune_groups
    from fastslow.tools.tune.groups_report import headline, page

    found = tune_groups(llm, options.model, asked, graded, **how)
    noun, chosen, fitted = found.units.name, found.proposed.count, llm.modes["fast"].routed
    said = headline(found)
    parts: dict[str, Any] = {f"measured_{noun}": found.record()}
    old = check_settings(out, options.model, options.folder)
    if "auto" in old and chosen != (found.all.count if fitted is None else fitted):
        parts["measured_modes"] = None
        said += (
            f"\nThe auto of {out} was fitted to a fast mode with other {noun}: its measured figures are "
            "taken out; `fastslow tune --modes` fits it again."
        )
    modes = {"fast": {noun: chosen}}
    add_settings(out, options.model, options.folder, modes=modes, **parts)
    return TuningOutcome(said, page(found, out.name), found.stopped)

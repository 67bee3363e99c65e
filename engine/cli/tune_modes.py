"""`fastslow tune --modes` and `--groups`: when to think, and with how many groups not to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastslow.engine.params import SamplingParams
    from fastslow.engine.tune.tasks import Task


@dataclass(frozen=True, slots=True)
class Job:
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


def tune_modes_job(job: Job, prompts: Path | None, tasks: Path | None, grading: str | None) -> bool:
    """Fit the choice between fast and deep; whether Ctrl-C ended it early.

    Raises:
        ValueError: no tasks, or something does not fit.
    """
    if tasks is None:
        raise ValueError("--tasks is missing: a file of JSON lines with prompt and answer")
    if prompts is not None:
        raise ValueError("--modes takes --tasks, which hold the prompts, and no --prompts")
    graded = _tasks(tasks, job.limit, grading)
    from fastslow.engine.cli.screen import console, quiet_log
    from fastslow.engine.cli.tune import Watched
    from fastslow.engine.llm import LLM
    from fastslow.engine.tune.choosing import ESCALATING, tune_modes
    from fastslow.engine.tune.choosing_page import choosing_page, headline
    from fastslow.engine.tune.tuned import add_settings

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
    job: Job, prompts: Path | None, tasks: Path | None, grading: str | None
) -> bool:
    """Measure every number of groups, propose the fast preset; whether Ctrl-C ended it early.

    Raises:
        ValueError: neither prompts nor tasks, or something does not fit.
    """
    if prompts is None and tasks is None:
        raise ValueError("--prompts is missing: a file of JSON lines with what you ask")
    from fastslow.engine.cli.measuring import prompts_for

    graded = [] if tasks is None else _tasks(tasks, job.limit, grading)
    asked = [t.prompt for t in graded] if prompts is None else prompts_for(prompts, job.limit)
    from fastslow.engine.cli.screen import console, quiet_log
    from fastslow.engine.cli.tune import Watched
    from fastslow.engine.llm import LLM
    from fastslow.engine.tune.groups import tune_groups
    from fastslow.engine.tune.groups_page import groups_page, headline
    from fastslow.engine.tune.tuned import add_settings

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

    from fastslow.engine.tune.tasks import Grading, read_tasks

    if grading is not None and grading not in get_args(Grading):
        raise ValueError(f"grading={grading!r} must be one of {', '.join(get_args(Grading))}")
    return read_tasks(path, limit, cast("Grading | None", grading))

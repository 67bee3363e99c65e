"""`fastslow tune`: the best drafter and length for the user's own prompts, when to think, with how many experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from fastslow.tools.tune.groups import GroupsFound


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
        Path | None, option("Graded tasks of --modes: JSON lines with prompt and answer.")
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
        Path,
        typer.Option(help="Page for a browser that shows why; not with --modes or --groups."),
    ] = Path("tuned.html"),
) -> None:
    """Find the drafter and the length that answer your prompts fastest; with --modes when to think, with
    --groups how many groups of experts the fast mode needs, or experts where the model has no groups.

    Examples:
      fastslow tune --prompts mine.jsonl
      fastslow tune --modes --tasks graded.jsonl
      fastslow tune --groups --prompts mine.jsonl
      fastslow tune --prompts mine.jsonl --minutes 3 --batch 8 --mode fast
      fastslow tune --prompts mine.jsonl --drafters ngram,self --lengths 2,4,8

    Writes a settings file; without --modes and --groups also an HTML page that shows why. Ctrl-C ends the
    search early and still writes both.
    """
    if modes and groups:
        raise ValueError("--modes and --groups are two things to tune: give one of them")
    kind = "modes" if modes else "groups" if groups else ""
    check_writable(out)
    check_writable(report)
    options.drafting()  # what does not fit is known before the model is loaded
    if modes and tasks is None:
        raise ValueError("--tasks is missing: a file of JSON lines with prompt and answer")
    if modes and prompts is not None:
        raise ValueError("--modes takes --tasks, which hold the prompts, and no --prompts")
    if tasks is not None and not modes:
        raise ValueError("--tasks are for --modes")
    if prompts is None and not modes:
        raise ValueError("--prompts is missing: a file of JSON lines with what you ask")
    from fastslow.settings import add_settings, check_settings, write_settings
    from fastslow.tools.cli.screen import console, quiet_log, show
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.prompts import read_prompts
    from fastslow.tools.tasks import read_tasks
    from fastslow.tools.tune.groups import tune_groups
    from fastslow.tools.tune.modes import tune_modes
    from fastslow.tools.tune.speculation import tune_speculation

    graded = [] if tasks is None else read_tasks(tasks, options.limit, grading)
    asked = [] if prompts is None else read_prompts(prompts, options.limit)
    quiet_log()
    model, said = options.model, ""
    old = check_settings(out, model, options.folder)
    how: dict[str, Any] = {"minutes": minutes, "sampling": options.sampling(512 if modes else 128)}
    # an LLM that remembered answers would draft each prompt from its own answer
    load = options.load(max_running=max(64, batch), remember=False)
    with load as llm, progress_bar() as progress:
        how["report"] = progress
        if modes:
            found: Any = tune_modes(llm, model, graded, keep=keep, batch=batch, **how)
            parts = {**found.settings(), "measured_modes": found.record()}
        elif groups:
            found = tune_groups(llm, model, asked, keep=keep, **how)
            parts, said = _groups_settings(found, llm.modes["fast"].routed, old, out)
        else:
            settings = options.settings(llm)
            found = tune_speculation(llm, model, asked, settings, batch=batch, mode=mode, **how)
    if kind:
        add_settings(out, model, options.folder, **parts)
    else:
        write_settings(out, model, found.best, found.figures(), options.folder)
        report.write_text(found.page(out.name), "utf-8")
    show(found.table())
    console().print(found.headline() + said)
    console().print(f"settings in {out}" + ("" if kind else f", report in {report}"), style="dim")
    if found.stopped:
        raise KeyboardInterrupt


def _groups_settings(
    found: GroupsFound, fast: int | None, old: dict[str, Any], out: Path
) -> tuple[dict[str, Any], str]:
    """Parts of the settings file, and what is to be said of the parts that were there.

    Args:
        fast: groups or experts that the fast mode runs; None = all.
        old: what is in the settings file.
    """
    noun, chosen = found.units.name, found.proposed.count
    parts: dict[str, Any] = {
        "modes": {"fast": {noun: chosen}},
        f"measured_{noun}": found.record(),
    }
    if "auto" not in old or chosen == (found.all.count if fast is None else fast):
        return parts, ""
    said = (
        f"\nThe auto of {out} was fitted to a fast mode with other {noun}: its measured figures are "
        "taken out; `fastslow tune --modes` fits it again."
    )
    return parts | {"measured_modes": None}, said

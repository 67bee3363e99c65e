"""`fastslow tune`: the best drafter and length for the user's own prompts, when to think, with how many experts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fastslow.tools.cli.drafting.bench import MEASURED, MeasureOptions
from fastslow.tools.cli.options import check_writable, expand_options, heed_sigterm
from fastslow.tools.job_options import PROMPTS, field

if TYPE_CHECKING:
    from fastslow.tools.tune.groups import GroupsFound


class TuneOptions(MeasureOptions):
    """Options of `tune`: what is tuned, and on what. ValueError: options contradict each other, or a file is missing or
    cannot be written."""

    prompts: Path | None = field(None, PROMPTS)
    modes: bool = field(False, "tune the choice between fast and deep instead")
    groups: bool = field(
        False,
        "tune how many groups, or experts, the fast mode runs instead",
        names="--groups --experts",
    )
    tasks: Path | None = field(None, "graded tasks of --modes: JSON lines with prompt and answer")
    keep: float = field(
        0.9, "share of deep's gain, or agreement with it, to keep", MEASURED, gt=0, le=1
    )
    minutes: float = field(
        10.0, "time for everything; what does not fit is said and left out", MEASURED, gt=0, le=1440
    )
    batch: int = field(1, "requests at a time that you expect", MEASURED)
    mode: str = field("deep", "deep, fast or another preset: see `fastslow modes`", MEASURED)
    out: Path = field(Path("tuned.json"), "settings file to write", names="-o --out")

    def model_post_init(self, _context: object) -> None:
        if self.modes and self.groups:
            raise ValueError("--modes and --groups are two things to tune: give one of them")
        check_writable(self.out)
        self.drafting()  # what does not fit is known before the model is loaded
        if self.modes and self.tasks is None:
            raise ValueError("--tasks is missing: a file of JSON lines with prompt and answer")
        if self.modes and self.prompts is not None:
            raise ValueError("--modes takes --tasks, which hold the prompts, and no --prompts")
        if self.tasks is not None and not self.modes:
            raise ValueError("--tasks are for --modes")
        if self.prompts is None and not self.modes:
            raise ValueError("--prompts is missing: a file of JSON lines with what you ask")


@expand_options
def tune(options: TuneOptions) -> None:
    """Find the drafter and the length that answer your prompts fastest; with --modes when to think, with
    --groups how many groups of experts the fast mode needs, or experts where the model has no groups.

    Examples:
      fastslow tune --prompts mine.jsonl
      fastslow tune --modes --tasks graded.jsonl
      fastslow tune --groups --prompts mine.jsonl
      fastslow tune path/to/model --prompts mine.jsonl --minutes 3 --batch 8 --mode fast
      fastslow tune --prompts mine.jsonl --drafters ngram,self --lengths 2,4,8

    Writes a settings file. Ctrl-C or SIGTERM ends the search early and still writes it. Where other programs disturbed what was measured, or it carries no verdict for
    other reasons, nothing is written, and the exit code is 1.
    """
    from fastslow.engine.host.progress import progress_bar
    from fastslow.settings import add_settings, check_settings, write_settings
    from fastslow.tools.cli.screen import console, quiet_log, show
    from fastslow.tools.prompts import read_prompts, read_tasks
    from fastslow.tools.tune.groups import tune_groups
    from fastslow.tools.tune.modes import tune_modes
    from fastslow.tools.tune.speculation import tune_speculation

    begun = time.monotonic()
    heed_sigterm()
    limit, batch = options.limit, options.batch
    graded = [] if options.tasks is None else read_tasks(options.tasks, limit)
    asked = [] if options.prompts is None else read_prompts(options.prompts, limit)
    quiet_log()
    model, out, folder, said = options.model, options.out, options.folder, ""
    old = check_settings(out, model, folder)
    sampling = options.sampling(512 if options.modes else 128)
    how: dict[str, Any] = {"sampling": sampling}
    # an LLM that remembered answers would draft each prompt from its own answer
    load = options.load(max_running=max(64, batch), remember=False)
    with load as llm, progress_bar() as progress:
        left = options.minutes - (time.monotonic() - begun) / 60
        how |= {"report": progress, "minutes": max(left, 1e-6)}
        if options.modes:
            found: Any = tune_modes(llm, graded, keep=options.keep, batch=batch, **how)
            parts = found.settings()
        elif options.groups:
            found = tune_groups(llm, model, asked, keep=options.keep, **how)
            parts, said = _groups_settings(found, llm.modes["fast"].routed, old, out)
        else:
            how |= {"batch": batch, "mode": options.mode}
            found = tune_speculation(llm, model, asked, options.settings(llm), **how)
    written = f"settings in {out}"
    if not (options.modes or found.carried):
        written = ""
    elif options.modes or options.groups:
        add_settings(out, model, folder, **parts)
    else:
        write_settings(out, model, found.best, found.figures(), folder)
    show(found.table())
    console().print(found.headline() + said)
    console().print(written, style="dim")
    if found.stopped:
        raise KeyboardInterrupt
    if not written:
        raise typer.Exit(1)


def _groups_settings(
    found: GroupsFound, fast: int | None, old: dict[str, Any], out: Path
) -> tuple[dict[str, Any], str]:
    """Parts of the settings file, and what is to be said of the parts that were there. fast: groups or experts that
    the fast mode runs; None = all. old: what is in the settings file."""
    noun, chosen = found.units.name, found.proposed.count
    parts: dict[str, Any] = {"modes": {"fast": {noun: chosen}}, f"measured_{noun}": found.record()}
    if "auto" not in old or chosen == (found.all.count if fast is None else fast):
        return parts, ""
    said = (
        f"\nThe auto of {out} was fitted to a fast mode with other {noun}: its measured figures are "
        "taken out; `fastslow tune --modes` fits it again."
    )
    return parts | {"measured_modes": None}, said

"""`fastslow quantize`: a float checkpoint becomes W8A8."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastslow.tools.cli.options import expand_options, option, shown_option

if TYPE_CHECKING:
    from rich.table import Table

CALIBRATION, CHECK = "Calibration", "Check"


@expand_options
def quantize(
    source: Annotated[str, typer.Argument(help="Float checkpoint folder, or built-in name.")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder to create.", show_default=False)
    ] = None,
    calibration: Annotated[
        Path | None,
        option(
            "Prompts, JSON lines; the model answers them. Default: the checkpoint's "
            "calibration.jsonl, else a few of many kinds.",
            CALIBRATION,
        ),
    ] = None,
    tokens: Annotated[int, shown_option("Tokens to calibrate with.", CALIBRATION, min=1)] = 8192,
    answer: Annotated[
        int, shown_option("Most tokens of an answer; 0: prompts alone.", CALIBRATION, min=0)
    ] = 160,
    least: Annotated[
        int, shown_option("Tokens that every expert should see.", CALIBRATION, min=1)
    ] = 32,
    embedding: Annotated[
        str, typer.Option(help="Embedding and head: int8, float, or auto (what 0.52 needs).")
    ] = "auto",
    kv: Annotated[bool, typer.Option(help="Also for keys and values in int8 (C8).")] = False,
    check: Annotated[int, shown_option("Texts to compare both on; 0: none.", CHECK, min=0)] = 16,
    tasks: Annotated[
        Path | None, option("Graded tasks, JSON lines with prompt and answer.", CHECK)
    ] = None,
    task_tokens: Annotated[
        int, shown_option("Most tokens of a task's answer.", CHECK, min=1)
    ] = 256,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would save; reads no weights.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the answers to calibrate with.")] = 0,
) -> None:
    """Make a W8A8 checkpoint: int8 weights per output channel, int8 activations per token.

    Examples:
      fastslow quantize smollm2-moge path/to/w8a8
      fastslow quantize path/to/model path/to/w8a8 --calibration mine.jsonl --kv
      fastslow quantize path/to/72b --plan

    What changed is measured and shown: perplexity, KL, likeliest tokens, memory, each layer and expert.
    """
    from fastslow.llm import LLM
    from fastslow.models.folder import require_vacant
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log, show
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.quantize import quantize as job
    from fastslow.tools.quantize.calibration import answered, prompts_of
    from fastslow.tools.quantize.report import FILE, QuantizeReport
    from fastslow.tools.tasks import read_tasks

    quiet_log()
    folder = resolve_model(source)
    if plan:
        show(_plan(folder, embedding, kv))
        return
    if out is None:
        raise ValueError("OUT is missing: the folder to create")
    job.check_known(folder)
    require_vacant(out)
    options = job.QuantizeOptions(tokens=tokens, least=least, embedding=embedding, kv=kv)
    graded = None if tasks is None else read_tasks(tasks)
    prompts = prompts_of(calibration, folder)
    with LLM(folder, remember=False) as llm, progress_bar() as bar:
        if llm.tokenizer is None:
            vocabulary = llm.model.config.vocab_size
            prompts = [[token % vocabulary] for token in range(1, 1 + len(prompts))]  # type: ignore[list-item]
        # texts that calibration does not see
        held = list(islice(answered(llm, prompts, tokens=answer, seed=seed + 1), check))
        made = job.quantize(
            folder, out, answered(llm, prompts, tokens=answer, seed=seed), options, bar
        )
    report = QuantizeReport(made, least)
    with LLM(folder, remember=False) as first, LLM(out, remember=False) as second:
        report.compare_models(first, second, held, graded, task_tokens)
    (out / FILE).write_text(json.dumps(report.record(), indent=1), "utf-8")
    for table in report.tables():
        show(table)
    console().print(f'done: fastslow generate "Hello" --model {out}')


def _plan(folder: Path, embedding: str, kv: bool) -> Table:
    from rich.table import Table

    from fastslow.engine.kv.budget import format_bytes
    from fastslow.tools.quantize.quantize import check_known
    from fastslow.tools.quantize.sizes import int8_embedding, planned

    config = check_known(folder)
    small = int8_embedding(config) if embedding == "auto" else embedding == "int8"
    parts = planned(config, embedding=small, kv=kv)
    whole = [sum(side) for side in zip(*parts.values())]
    table = Table("part", "bfloat16", "W8A8", "ratio")
    for part, (before, after) in {**parts, "all": (whole[0], whole[1])}.items():
        table.add_row(part, format_bytes(before), format_bytes(after), f"{after / before:.3f}")
    return table

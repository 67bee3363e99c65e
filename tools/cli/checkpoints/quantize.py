"""`fastslow quantize`: a float checkpoint becomes W8A8."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastslow.tools.cli.options import OptionFields, expand_options, option, shown_option
from fastslow.tools.quantize.options import QuantizeOptions

if TYPE_CHECKING:
    from rich.table import Table

CALIBRATION, CHECK = "Calibration", "Check"


@expand_options
def quantize(
    source: Annotated[str, typer.Argument(help="Float checkpoint folder, or built-in name.")],
    options: Annotated[
        QuantizeOptions, OptionFields("tokens", "least", "embedding", "kv", panel=CALIBRATION)
    ],
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
    answer: Annotated[
        int, shown_option("Most tokens of an answer; 0: prompts alone.", CALIBRATION, min=0)
    ] = 160,
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

    What changed is measured and shown: perplexity, KL, likeliest tokens, memory. quantization_report.json in the
    new folder has each layer and expert.
    """
    from fastslow.llm import LLM
    from fastslow.models.folder import require_vacant
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log, show
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.quantize import quantize as job
    from fastslow.tools.quantize.calibration import answered, prompts_of
    from fastslow.tools.quantize.comparison import FILE, accuracies, compare, record, table_of
    from fastslow.tools.tasks import read_tasks

    quiet_log()
    folder = resolve_model(source)
    if plan:
        show(_plan(folder, options.embedding, options.kv))
        return
    if out is None:
        raise ValueError("OUT is missing: the folder to create")
    job.check_known(folder)
    require_vacant(out)
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
    with LLM(folder, remember=False) as first, LLM(out, remember=False) as second:
        sizes = [getattr(llm.model, "weight_bytes", 0) for llm in (first, second)]
        compared = compare(first.model, second.model, held) if held else None
        accuracy = accuracies((first, second), graded, task_tokens) if graded else []
    facts = record(made, options.least, compared, sizes if all(sizes) else [], accuracy)
    (out / FILE).write_text(json.dumps(facts, indent=1), "utf-8")
    show(table_of(facts))
    console().print(f'done: fastslow generate "Hello" --model {out}')


def _plan(folder: Path, embedding: str, kv: bool) -> Table:
    from rich.table import Table

    from fastslow.engine.kv.budget import format_bytes
    from fastslow.tools.quantize.quantize import check_known, int8_embedding, planned

    config = check_known(folder)
    small = int8_embedding(config) if embedding == "auto" else embedding == "int8"
    parts = planned(config, embedding=small, kv=kv)
    whole = [sum(side) for side in zip(*parts.values())]
    table = Table("part", "bfloat16", "W8A8", "ratio")
    for part, (before, after) in {**parts, "all": (whole[0], whole[1])}.items():
        table.add_row(part, format_bytes(before), format_bytes(after), f"{after / before:.3f}")
    return table

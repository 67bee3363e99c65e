"""`fastslow quantize`: a W8A8 checkpoint is made of a float one."""

from __future__ import annotations

import json
import shlex
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from fastslow.tools.cli.options import expand_options
from fastslow.tools.cli.screen import console, quiet_log, show
from fastslow.tools.job_options import QuantizeOptions, field


class QuantizeCommand(QuantizeOptions):
    """Options of quantising a checkpoint, and of what is looked at afterwards."""

    calibration: Path | None = field(
        None,
        "prompts, JSON lines; the model answers them. Default: the checkpoint's calibration.jsonl, else a "
        "few of many kinds",
    )
    answer: int = field(160, "most tokens of an answer; 0: prompts alone", ge=0)
    check: int = field(16, "texts to compare both on; 0: none", ge=0)
    seed: int = field(0, "of the answers to calibrate with")


@expand_options
def quantize(
    source: Annotated[str, typer.Argument(help="Float checkpoint folder, or built-in name.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    options: QuantizeCommand,
) -> None:
    """Make a W8A8 checkpoint: int8 weights per output channel, int8 activations per token.

    Examples:
      fastslow quantize smollm2-moge path/to/w8a8
      fastslow quantize path/to/model path/to/w8a8 --calibration mine.jsonl --kv

    What changed is measured and shown: perplexity, KL, likeliest tokens, memory. quantization_report.json in the
    new folder also has the drift of each layer.
    """
    from fastslow.engine.host.progress import progress_bar
    from fastslow.llm import LLM
    from fastslow.models.folder import require_vacant
    from fastslow.models.locate import resolve_model
    from fastslow.tools.quantize import quantize as job
    from fastslow.tools.quantize.calibration import answered, prompts_of
    from fastslow.tools.quantize.comparison import FILE, compare, record, table_of

    quiet_log()
    folder = resolve_model(source)
    job.check_known(folder)
    require_vacant(out)
    prompts = prompts_of(options.calibration, folder)
    tokens, seed = options.answer, options.seed
    with progress_bar() as bar:
        bar(0.0, "loading")
        with LLM(folder, remember=False, progress=False) as llm:
            if llm.tokenizer is None:
                vocabulary = llm.model.config.vocab_size
                prompts = [[token % vocabulary] for token in range(1, 1 + len(prompts))]  # type: ignore[list-item]
            # texts that calibration does not see
            bar(0.0, "answers to compare both on")
            held = list(islice(answered(llm, prompts, tokens=tokens, seed=seed + 1), options.check))
            bar(0.0, "answers to calibrate with")
            texts = answered(llm, prompts, tokens=tokens, seed=seed)
            made = job.quantize(folder, out, texts, options, bar)
        bar(1.0, "comparing both")
        with (
            LLM(folder, remember=False, progress=False) as first,
            LLM(out, remember=False, progress=False) as second,
        ):
            sizes = [getattr(llm.model, "weight_bytes", 0) for llm in (first, second)]
            compared = compare(first.model, second.model, held) if held else None
    facts = record(made, compared, sizes if all(sizes) else [])
    (out / FILE).write_text(json.dumps(facts, indent=1), "utf-8")
    show(table_of(facts))
    console().print(f'done: fastslow generate "Hello" --model {shlex.quote(str(out))}')

"""A dense checkpoint becomes a MoGE checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.dense import dense_config
from fastslow.models.folder import require_vacant
from fastslow.models.moge import write_moge
from fastslow.models.recipe import Recipe
from fastslow.tools.convert.calibrate import NeuronSplit, calibrate
from fastslow.tools.convert.distill import Distiller, Schedule, saved_layout
from fastslow.tools.convert.options import ConvertOptions
from fastslow.tools.convert.student import recipe_of, student_of
from fastslow.tools.convert.teacher import Teacher
from fastslow.tools.convert.texts import Prose, TextWriter
from fastslow.tools.progress import progress_bar


def convert(
    dense_folder: Path,
    out: Path,
    options: ConvertOptions | None = None,
    *,
    calibration_rows: int = 96,
    schedule: Schedule | None = None,
) -> Path:
    """Turns a dense Llama-like checkpoint into a MoGE checkpoint (PanguProMoEForCausalLM).

    The FFN neurons that matter most become the shared expert; the others are dealt to one pool
    for each group, and each pool gives overlapping experts found by clustering calibration tokens.
    With `options.minutes` the result is then distilled from the dense model.

    Args:
        dense_folder: LlamaForCausalLM or PanguEmbeddedForCausalLM folder of safetensors, with a
            tokenizer.json or tokenizer.model; tied or untied.
        out: folder to create; it appears only when complete.
        options: None = the usual ones.
        calibration_rows: rows of `schedule.row` tokens to calibrate on, two thirds of them
            written by the dense model.
        schedule: rates and mixture of the distillation; `minutes` and `seed` of the options replace
            its own.

    Returns:
        `out`.

    Raises:
        ValueError: the model is of another kind, or a number does not fit it.
    """
    require_vacant(out)
    o = options or ConvertOptions()
    if calibration_rows < 1:
        raise ValueError(f"calibration_rows must be 1 or more, got {calibration_rows}")
    inner = dense_config(dense_folder).intermediate_size
    split = NeuronSplit.of(inner, o.groups, o.experts, o.shared, o.width)
    plan = replace(schedule or Schedule(), minutes=o.minutes, seed=o.seed)
    torch.manual_seed(o.seed)
    dense = Teacher(dense_folder)
    tokenizer = load_tokenizer(dense_folder)
    prose = Prose(o.text, tokenizer, seed=o.seed) if o.text else None
    writer = TextWriter(dense, tokenizer, prose, o.system, o.seed)
    with progress_bar() as report:
        resumed = o.checkpoint if o.minutes and o.checkpoint and o.checkpoint.is_file() else None
        if resumed is not None:
            layout = saved_layout(resumed)
        else:
            report(0.0, "writing calibration text")
            human = calibration_rows // 3 if prose else 0
            tokens, hidden = writer.rows(calibration_rows - human, plan.row)
            rows = torch.cat((tokens, prose.rows(human, plan.row))) if prose and human else tokens

            def done(layer: int) -> None:
                report((layer + 1) / dense.config.layers, "choosing experts")

            layout = calibrate(dense, rows, split, seed=o.seed, done=done)
        recipe = Recipe.untrained(layout)
        if o.minutes:
            student = student_of(recipe, dense)
            trainer = Distiller(student, plan, prose, writer, o.checkpoint)
            if resumed is None:
                trainer.pool.add(tokens, hidden)
            trainer.run(report)
            recipe = recipe_of(student)
    if o.recipe is not None:
        recipe.save(o.recipe)
    return write_moge(dense_folder, recipe, out, fast=o.fast)

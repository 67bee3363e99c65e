"""Cuts a dense model into a MoGE model and distils the dense model into it: how smollm2-moge was made.

python examples/train_smollm2_moge.py smollm2 out --minutes 81 --text books/ --recipe trained.safetensors
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from smollm2_moge.distill import Distiller, Schedule, saved_layout
from smollm2_moge.student import recipe_of, student_of
from smollm2_moge.teacher import Teacher
from smollm2_moge.texts import PLAIN_SYSTEM, Prose, TextWriter

from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.folder import require_vacant
from fastslow.models.locate import resolve_model
from fastslow.models.moge import write_moge
from fastslow.models.recipe import Recipe
from fastslow.tools.convert import NeuronSplit, calibrate
from fastslow.tools.job_options import ConvertOptions
from fastslow.tools.progress import progress_bar


def train(
    dense_folder: Path,
    out: Path,
    options: ConvertOptions,
    schedule: Schedule,
    *,
    system: str = PLAIN_SYSTEM,
    checkpoint: Path | None = None,
    recipe_file: Path | None = None,
    calibration_rows: int = 96,
) -> Path:
    """Convert, then train for `schedule.minutes`; returns `out`.

    Args:
        dense_folder: see `fastslow.tools.convert.convert`.
        out: folder to create.
        options: sizes and texts.
        schedule: how it is trained.
        system: system message of the chats to learn.
        checkpoint: file to save training to, and to continue from.
        recipe_file: also save what was learnt, without weights.
        calibration_rows: rows that choose the experts, two thirds of them written by the dense model.
    """
    require_vacant(out)
    torch.manual_seed(options.seed)
    dense, tokenizer = Teacher(dense_folder), load_tokenizer(dense_folder)
    prose = Prose(options.text, tokenizer, seed=options.seed) if options.text else None
    writer = TextWriter(dense, tokenizer, prose, system, options.seed)
    split = NeuronSplit.of(
        dense.config.intermediate_size,
        options.groups,
        options.experts,
        options.shared,
        options.width,
    )
    with progress_bar() as report:
        if checkpoint is not None and checkpoint.is_file():
            written = None
            layout = saved_layout(checkpoint)
        else:
            report(0.0, "writing calibration text")
            human = calibration_rows // 3 if prose else 0
            written = writer.rows(calibration_rows - human, schedule.row)
            rows = written[0]
            if prose and human:
                rows = torch.cat((rows, prose.rows(human, schedule.row)))
            layout = calibrate(dense, rows.tolist(), split, seed=options.seed)
        student = student_of(Recipe.untrained(layout), dense)
        trainer = Distiller(student, schedule, prose, writer, checkpoint)
        if written is not None:
            trainer.pool.add(*written)
        trainer.run(report)
    recipe = recipe_of(student)
    if recipe_file is not None:
        recipe.save(recipe_file)
    return write_moge(dense_folder, recipe, out, fast=options.fast)


def main(
    source: Annotated[str, typer.Argument(help="Dense checkpoint folder, or smollm2.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    minutes: Annotated[float, typer.Option(help="Minutes of training.", min=0.01)] = 81.0,
    text: Annotated[
        list[Path] | None, typer.Option(help="Texts and folders to learn from.")
    ] = None,
    system: Annotated[str, typer.Option(help="System message of the chats.")] = PLAIN_SYSTEM,
    checkpoint: Annotated[Path | None, typer.Option(help="File to continue from.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="File for what was learnt.")] = None,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
) -> None:
    """Make a MoGE model of a dense one, and train it."""
    options = ConvertOptions(text=tuple(text or ()), seed=seed)
    plan = replace(Schedule(), minutes=minutes, seed=seed)
    where = {"system": system, "checkpoint": checkpoint, "recipe_file": recipe}
    train(resolve_model(source), out, options, plan, **where)  # type: ignore[arg-type]


if __name__ == "__main__":
    typer.run(main)

"""Cuts a dense model into a MoGE model and distils the dense model into it, as smollm2-moge was made.

python examples/prompts/make.py --count 3000 -o prompts.jsonl
python examples/train_smollm2_moge.py smollm2 out --prompts prompts.jsonl --minutes 81
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import typer
from smollm2_moge.distill import Distiller, Schedule
from smollm2_moge.student import Student, Teacher, recipe_of

from fastslow.engine.host.progress import progress_bar
from fastslow.models.folder import require_vacant
from fastslow.models.locate import resolve_model
from fastslow.models.moge import write_moge
from fastslow.tools.convert import NeuronSplit, calibrate, calibration_texts
from fastslow.tools.job_options import ConvertOptions

CALIBRATION = 100  # texts that choose the experts


def train(
    folder: Path,
    out: Path,
    options: ConvertOptions,
    schedule: Schedule,
    prompts: Path | None = None,
) -> Path:
    """Convert a dense model, then train for `schedule.minutes`; returns `out`, the folder that is made. prompts: that
    the dense model answers; None = a few of many kinds."""
    require_vacant(out)
    torch.manual_seed(options.seed)
    with progress_bar() as report:
        texts = calibration_texts(folder, options, report, prompts)
        dense = Teacher(folder)
        inner = dense.config.intermediate_size
        split = NeuronSplit.of(
            inner, options.groups, options.experts, options.shared, options.width
        )
        report(0.3, "choosing experts")
        layout = calibrate(dense, texts[:CALIBRATION], split, seed=options.seed)
        student = Student(dense, layout)
        Distiller(student, torch.tensor(list(chain(*texts))), schedule).run(report)
    return write_moge(folder, recipe_of(student), out, fast=options.fast)


def main(
    source: Annotated[str, typer.Argument(help="Dense checkpoint folder, or smollm2.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    prompts: Annotated[Path | None, typer.Option(help="JSON lines that the model answers.")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training.", min=0.01)] = 81.0,
    tokens: Annotated[int, typer.Option(help="That the dense model writes.")] = 166_000,
    shared: Annotated[int, typer.Option(help="Neurons of the shared expert.")] = 1088,
    width: Annotated[int, typer.Option(help="Neurons of a routed expert.")] = 48,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
) -> None:
    """Make a MoGE model of a dense one, and train it."""
    options = ConvertOptions(tokens=tokens, shared=shared, width=width, seed=seed)
    train(resolve_model(source), out, options, Schedule(minutes=minutes, seed=seed), prompts)


if __name__ == "__main__":
    typer.run(main)

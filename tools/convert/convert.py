from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress

from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.dense import Dense, dense_config
from fastslow.models.folder import require_vacant
from fastslow.models.moge import write_moge
from fastslow.models.recipe import Recipe
from fastslow.tools.convert.calibrate import calibrate
from fastslow.tools.convert.distill import Distiller, Schedule, saved_layout
from fastslow.tools.convert.student import recipe_of, student_of
from fastslow.tools.convert.texts import Prose, TextWriter


@dataclass(frozen=True)
class Split:
    """How an FFN is divided: groups * pool + shared = inner neurons, width of a pool's experts."""

    groups: int
    experts: int
    shared: int
    width: int

    @classmethod
    def of(
        cls, inner: int, groups: int, experts: int, shared: int | None, width: int | None
    ) -> Split:
        """Checks the parts of an FFN of `inner` neurons, choosing those that are None.

        By default the shared expert takes 7/12 of the neurons and an expert 4/5 of its pool, both
        in multiples of 16 where the size allows.

        Raises:
            ValueError: a part is out of range, or the rest does not divide by `groups`.
        """
        for field, value in (("groups", groups), ("experts", experts)):
            if not 1 <= value <= 256:
                raise ValueError(f"{field} must be 1 to 256, got {value}")
        if inner <= groups:
            raise ValueError(f"groups must be less than the {inner} FFN neurons, got {groups}")
        if shared is None:
            pool = inner * 5 // 12 // groups
            shared = inner - groups * max(1, pool // 16 * 16 if pool >= 16 else pool)
        if not 0 < shared < inner:
            raise ValueError(f"shared must be 1 to {inner - 1} of the FFN neurons, got {shared}")
        pool, left = divmod(inner - shared, groups)
        if left:
            raise ValueError(
                f"shared={shared} leaves {inner - shared} FFN neurons, which must divide by "
                f"groups={groups}"
            )
        if width is None:
            width = pool * 4 // 5
            width = max(1, width // 16 * 16 if width >= 16 else width)
        if not 1 <= width <= pool:
            raise ValueError(f"width must be 1 to the pool's {pool} neurons, got {width}")
        return cls(groups, experts, shared, width)


def convert(
    dense_folder: Path,
    out: Path,
    *,
    groups: int = 8,
    experts: int = 8,
    shared: int | None = None,
    width: int | None = None,
    text: Sequence[Path] = (),
    calibration_rows: int = 96,
    minutes: float = 0.0,
    fast: int = 2,
    system: str = "You are a helpful assistant.",
    seed: int = 0,
    recipe_out: Path | None = None,
    checkpoint: Path | None = None,
    schedule: Schedule | None = None,
) -> Path:
    """Turns a dense Llama-like checkpoint into a MoGE checkpoint (PanguProMoEForCausalLM).

    The FFN neurons that matter most become the shared expert; the others are dealt to one pool
    for each group, and each pool gives overlapping experts found by clustering calibration tokens.
    With `minutes` the result is then distilled from the dense model.

    Args:
        dense_folder: LlamaForCausalLM or PanguEmbeddedForCausalLM folder of safetensors, with a
            tokenizer.json or tokenizer.model; tied or untied.
        out: folder to create; it appears only when complete.
        groups: routed groups, each of which runs one expert per token. Default 8.
        experts: experts of each group. Default 8.
        shared: neurons of the shared expert; None takes about 7/12 of them.
        width: neurons of one routed expert; None takes about 4/5 of its group's pool.
        text: files or folders of ordinary text, .txt or .html, for calibration and training;
            without any, the dense model writes all of it.
        calibration_rows: rows of `schedule.row` tokens to calibrate on, two thirds of them
            written by the dense model. Default 96.
        minutes: wall-clock minutes of distillation; 0 leaves the weights as they are.
        fast: groups that the preset "fast" runs. Default 2.
        system: usual system message of the chats that the dense model writes.
        seed: of all random choices.
        recipe_out: also save the recipe (neurons, router, deltas) to this file.
        checkpoint: file that training saves to, and continues from if it exists.
        schedule: rates and mixture of the distillation; `minutes` and `seed` replace its own.

    Returns:
        `out`.

    Raises:
        ValueError: the model is of another kind, or a number does not fit it.
    """
    require_vacant(out)
    if minutes < 0:
        raise ValueError(f"minutes must be 0 or more, got {minutes}")
    if calibration_rows < 1:
        raise ValueError(f"calibration_rows must be 1 or more, got {calibration_rows}")
    if not 0 <= fast <= groups:
        raise ValueError(f"fast must be 0 to {groups} groups, got {fast}")
    split = Split.of(dense_config(dense_folder).intermediate_size, groups, experts, shared, width)
    plan = replace(schedule or Schedule(), minutes=minutes, seed=seed)
    torch.manual_seed(seed)
    dense = Dense(dense_folder)
    tokenizer = load_tokenizer(dense_folder)
    prose = Prose(text, tokenizer, seed=seed) if text else None
    writer = TextWriter(dense, tokenizer, prose, system, seed)
    with Progress(transient=True) as progress:
        task = progress.add_task("writing calibration text", total=None)
        resumed = bool(minutes and checkpoint is not None and checkpoint.is_file())
        if resumed and checkpoint is not None:
            layout = saved_layout(checkpoint)
        else:
            human = calibration_rows // 3 if prose else 0
            tokens, hidden = writer.rows(calibration_rows - human, plan.row)
            rows = torch.cat((tokens, prose.rows(human, plan.row))) if prose and human else tokens
            progress.update(task, description="choosing experts", total=dense.config.layers)
            layout = calibrate(
                dense,
                rows,
                groups=groups,
                experts=experts,
                shared=split.shared,
                width=split.width,
                seed=seed,
                progress=lambda: progress.advance(task),
            )
        recipe = Recipe.untrained(layout)
        if minutes:
            progress.update(task, description="distilling", total=minutes, completed=0)
            student = student_of(recipe, dense)
            trainer = Distiller(student, plan, prose, writer, checkpoint)
            if not resumed:
                trainer.pool.add(tokens, hidden)
            trainer.run(lambda done, loss: progress.update(task, completed=done))
            recipe = recipe_of(student)
    if recipe_out is not None:
        recipe.save(recipe_out)
    return write_moge(dense_folder, recipe, out, fast=fast)

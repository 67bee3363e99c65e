"""`fastslow train-draft`: a draft head for a target, from prompts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastslow.tools.cli.options import (
    ModelOptions,
    OptionFields,
    expand_options,
    option,
    shown_option,
)
from fastslow.tools.train_head.config import TrainConfig

DATA, TRAINING = "Data", "Training"


@expand_options
def train_draft(
    target: Annotated[str, typer.Option(help="Checkpoint folder, GGUF file or built-in name.")],
    data: Annotated[
        Path, typer.Option(help="Prompts, JSON Lines: prompt, question, turns or messages.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The head's file to write.")],
    training: Annotated[
        TrainConfig,
        OptionFields("tokens", "rate", "rows", "steps", "stretches", "seed", panel=TRAINING),
    ],
    engine: Annotated[ModelOptions, OptionFields("dtype", "quantization", "device")],
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for answers, features, checkpoint; default: OUT.work."),
    ] = None,
    start: Annotated[
        Path | None, option("A head of a similar model to begin with.", TRAINING)
    ] = None,
    vocabulary: Annotated[int, shown_option("Tokens that can be drafted.", TRAINING, min=1)] = 8192,
    answer: Annotated[int, shown_option("Most tokens of an answer.", DATA, min=3)] = 192,
    batch: Annotated[int, shown_option("Answers made at once.", DATA, min=1)] = 16,
) -> None:
    """Train a head that drafts for a target, on the target's own answers.

    Examples:
      fastslow train-draft --target smollm2-moge --data prompts.jsonl -o head.safetensors
      fastslow train-draft --target path/to/model --data mine.jsonl -o head.safetensors --tokens 200000

    Ctrl-C keeps what was done; the same command continues from there.
    """
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.prompts import read_prompts
    from fastslow.tools.train_head.train import TrainPlan, default_layers, train_head

    quiet_log()
    prompts = read_prompts(data)
    folder = resolve_model(target)
    target_options = engine.model_copy(update={"model": str(folder)})
    with target_options.load(max_running=batch) as llm, progress_bar() as report:
        plan = TrainPlan(
            target=folder,
            out=out,
            work=work or out.with_suffix(".work"),
            layers=default_layers(llm.model.config.layers),
            vocabulary=vocabulary,
            answer=answer,
            train_config=training,
            start=start,
        )
        found = train_head(
            plan,
            llm.model,
            lambda some, params: llm.generate(
                list(some), list(params), speculation="off", progress=False
            ),
            prompts,
            report,
        )
    shares = ", ".join(f"{share:.0%}" for share in found.acceptance)
    console().print(
        f"{found.tokens_per_step:.2f} tokens/step in chains of {training.steps} on held-out answers "
        f"(by position: {shares})"
    )

"""`fastslow train-draft`: a draft head for a target, from prompts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastslow.tools.cli.options import (
    Device,
    DType,
    Quantization,
    expand_options,
    option,
    shown_option,
)

DATA, TRAINING = "Data", "Training"


@expand_options
def train_draft(
    target: Annotated[str, typer.Option(help="Checkpoint folder, GGUF file or built-in name.")],
    data: Annotated[
        Path, typer.Option(help="Prompts, JSON Lines: prompt, question, turns or messages.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The head's file to write.")],
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for answers, features, checkpoint; default: OUT.work."),
    ] = None,
    start: Annotated[Path | None, option("A head of a like model to begin with.", TRAINING)] = None,
    tokens: Annotated[
        int, shown_option("Rows to learn from, all epochs.", TRAINING, min=1)
    ] = 1_000_000,
    rate: Annotated[float, shown_option("Peak learning rate.", TRAINING, min=0)] = 2e-3,
    rows: Annotated[int, shown_option("Rows of a batch.", TRAINING, min=1)] = 2048,
    steps: Annotated[int, shown_option("Depth of the trained chain.", TRAINING, min=1)] = 4,
    stretches: Annotated[
        float,
        shown_option(
            "Share of the long prompts in which a stretch is taught, too: where prompts hold "
            "text that the target itself wrote.",
            TRAINING,
            min=0,
            max=1,
        ),
    ] = 0.0,
    vocabulary: Annotated[int, shown_option("Tokens that can be drafted.", TRAINING, min=1)] = 8192,
    answer: Annotated[int, shown_option("Most tokens of an answer.", DATA, min=3)] = 192,
    batch: Annotated[int, shown_option("Answers made at once.", DATA, min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    dtype: DType = "auto",
    quantization: Quantization = "auto",
    device: Device = "auto",
) -> None:
    """Train a head that drafts for a target, on the target's own answers.

    Examples:
      fastslow train-draft --target smollm2-moge --data prompts.jsonl -o head.safetensors
      fastslow train-draft --target path/to/model --data mine.jsonl -o head.safetensors --tokens 200000

    Ctrl-C keeps what was done; the same command goes on from there.
    """
    from fastslow.llm import LLM
    from fastslow.models.locate import resolve_model
    from fastslow.tools.cli.screen import console, quiet_log
    from fastslow.tools.progress import progress_bar
    from fastslow.tools.prompts import read_prompts
    from fastslow.tools.train_head.train import TrainPlan, default_layers, train_head
    from fastslow.tools.train_head.trainer import TrainConfig

    quiet_log()
    prompts = read_prompts(data)
    folder = resolve_model(target)
    train_config = TrainConfig(
        steps=steps, rate=rate, tokens=tokens, rows=rows, stretches=stretches, seed=seed
    )
    with LLM(
        folder, dtype=dtype, quantization=quantization, device=device, max_running=batch
    ) as llm:
        plan = TrainPlan(
            target=folder,
            out=out,
            work=work or out.with_suffix(".work"),
            layers=default_layers(llm.model.config.layers),
            vocabulary=vocabulary,
            answer=answer,
            train_config=train_config,
            start=start,
        )
        with progress_bar() as report:
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
        f"{found.tokens_per_step:.2f} tokens/step in chains of {steps} on held-out answers "
        f"(by position: {shares}); the curve is in {plan.work / 'curve.jsonl'}"
    )

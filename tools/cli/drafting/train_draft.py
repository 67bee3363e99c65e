"""`fastslow train-draft`: a draft head for a target, from prompts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastslow.engine.checked import Params
from fastslow.tools.cli.options import PROMPTS, ModelOptions, OptionFields, expand_options, field
from fastslow.tools.job_options import TrainConfig

DATA, TRAINING = "Data", "Training"
TRAINED = OptionFields("tokens", "rate", "rows", "steps", "seed", panel=TRAINING)


class HeadOptions(Params):
    """What a head is trained for, and from what."""

    target: str = field(..., "checkpoint folder, GGUF file or built-in name")
    data: Path = field(..., PROMPTS)
    out: Path = field(..., "the head's file to write", names="--out -o")
    work: Path | None = field(None, "folder for answers, features, checkpoint; default: OUT.work")
    start: Path | None = field(None, "a head of a similar model to begin with", TRAINING)
    vocabulary: int = field(8192, "tokens that can be drafted", TRAINING, ge=1)
    answer: int = field(192, "most tokens of an answer", DATA, ge=3)
    batch: int = field(16, "answers made at once", DATA, ge=1)


@expand_options
def train_draft(
    options: HeadOptions,
    training: Annotated[TrainConfig, TRAINED],
    engine: Annotated[ModelOptions, OptionFields("dtype", "quantization", "device")],
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
    prompts = read_prompts(options.data)
    folder, out = resolve_model(options.target), options.out
    target = engine.model_copy(update={"model": str(folder)})
    with target.load(max_running=options.batch) as llm, progress_bar() as report:
        plan = TrainPlan(
            target=folder,
            out=out,
            work=options.work or out.with_suffix(".work"),
            layers=default_layers(llm.model.config.layers),
            vocabulary=options.vocabulary,
            answer=options.answer,
            train_config=training,
            start=options.start,
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

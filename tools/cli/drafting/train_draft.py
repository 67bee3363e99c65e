"""`fastslow train-draft`: a draft head for a target, from prompts alone."""

from __future__ import annotations

from typing import Annotated

from fastslow.serve.api.config import ModelArguments
from fastslow.tools.cli.options import ModelOptions, OptionFields, expand_options, heed_sigterm
from fastslow.tools.job_options import HeadOptions, TrainConfig

TRAINED = OptionFields("tokens", "rate", "rows", "steps", "seed", panel="Training")


@expand_options
def train_draft(
    options: Annotated[HeadOptions, OptionFields(panel="Data")],
    training: Annotated[TrainConfig, TRAINED],
    engine: Annotated[ModelArguments, OptionFields("dtype", "quantization", "device")],
) -> None:
    """Train a head that drafts for a target, on the target's own answers.

    Examples:
      fastslow train-draft smollm2-moge --data prompts.jsonl -o head.safetensors
      fastslow train-draft path/to/model --data mine.jsonl -o head.safetensors --tokens 200000

    Ctrl-C or SIGTERM keeps what was done, and says what; the same command continues from there.
    """
    from fastslow.engine.host.progress import progress_bar
    from fastslow.tools.cli.screen import console, errors, quiet_log
    from fastslow.tools.prompts import read_prompts
    from fastslow.tools.train_head.train import train_head

    heed_sigterm()
    quiet_log()
    prompts = read_prompts(options.data)
    target = ModelOptions(model=options.target, options=engine)
    try:
        with target.load(max_running=options.batch) as llm, progress_bar() as report:
            found = train_head(
                options,
                training,
                llm.model,
                lambda some, params: llm.generate(
                    list(some), list(params), speculation="off", progress=False
                ),
                prompts,
                report,
            )
    except KeyboardInterrupt:
        said = f"{options.out}.work keeps what was done: the same command continues from there"
        errors().print(said, style="dim")
        raise
    shares = ", ".join(f"{share:.0%}" for share in found.acceptance)
    console().print(
        f"{found.tokens_per_step:.2f} tokens/step in chains of {training.steps} on held-out answers "
        f"(by position: {shares})"
    )

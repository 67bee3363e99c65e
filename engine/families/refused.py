"""Architectures that are known and do not run: what they have that no part here computes."""

from fastslow.engine.model.family import Refusal

REFUSED = (
    Refusal(
        ("qwen4exp", "qwen38flashnext"),
        "it has several residual streams (hyper-connections), hashed n-gram embeddings and block-sparse attention",
        "qwen3_5moe",
    ),
    Refusal(
        ("lfm3",),
        "it has a gate for each head of attention, windows that rotate otherwise than full attention, convolutions of "
        "7 tokens and norms after sublayers",
        "lfm2",
    ),
)

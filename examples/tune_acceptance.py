"""How much is accepted of drafts: drafters, lengths and rules side by side, and what lossy rules cost.

Run: python examples/tune_acceptance.py [MODEL] [--tokens N]

For your own prompts, `fastslow tune --prompts mine.jsonl` does this in earnest.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastslow import LLM, Output, SamplingParams, Speculation

PROMPTS = (
    "Repeat after me, three times: the quick brown fox jumps over the lazy dog.",
    "List the numbers from 1 to 20.",
    "Explain in three steps how tea is made.",
)
BARS = " ▁▂▃▄▅▆▇█"


def settings(groups: int) -> dict[str, Speculation]:
    """What is compared; plain decoding first. groups: of the model, 0 = dense."""
    half = groups // 2
    own = "self" if groups else "ngram"
    found = {"plain": Speculation(drafter="off")}
    for nodes in (2, 4, 8):
        found[f"suffix, {nodes}"] = Speculation(drafter="suffix", nodes=nodes)
    found["suffix, adaptive"] = Speculation(drafter="suffix")
    if groups:
        for nodes in (2, 4):
            found[f"self, {half} groups, {nodes}"] = Speculation(
                drafter="self", groups=half, nodes=nodes
            )
    for score in (0.9, 0.6):
        found[f"lossy-stepwise at {score}"] = Speculation(
            drafter=own, groups=half, nodes=12, accept="lossy-stepwise", step_score=score
        )
    return found


def bars(outs: list[Output]) -> str:
    """Acceptance by position, as a small picture: of the answer that was drafted for most."""
    shares = max((o.metrics.acceptance for o in outs), key=len)
    return "".join(BARS[round(share * (len(BARS) - 1))] for share in shares[:12])


def same(outs: list[Output], plain: list[Output]) -> str:
    """How many answers are plain decoding's."""
    return f"{sum(a.token_ids == b.token_ids for a, b in zip(outs, plain))} of {len(plain)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-moge", help="a folder or a name")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer (32)")
    options = parser.parse_args()
    sampling = SamplingParams(max_tokens=options.tokens)
    found: dict[str, list[Output]] = {}
    # without memory: else each answer would be drafted from the same answer before
    with LLM(options.model, remember=False) as llm:
        kinds = settings(llm.model.config.groups)
        for name, setting in track(kinds.items(), "Answering"):
            found[name] = [llm.chat(p, sampling, speculation=setting) for p in PROMPTS]
    table = Table(
        "", "tokens/step", "drafted", "accepted", "by position", "tokens/s", "same answer"
    )
    for name, outs in found.items():
        steps = sum(o.metrics.steps for o in outs)
        tokens = sum(o.metrics.tokens for o in outs)
        drafted, accepted = (
            sum(getattr(o.metrics, f) for o in outs) for f in ("drafted", "accepted")
        )
        spent = sum(o.metrics.tpot * (o.metrics.tokens - 1) for o in outs)
        table.add_row(
            name,
            f"{tokens / steps:.2f}",
            str(drafted),
            f"{accepted / drafted:.0%}" if drafted else "-",
            bars(outs),
            f"{(tokens - len(outs)) / spent:.0f}" if spent else "-",
            same(outs, found["plain"]),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("Exact rules always give the same answer; lossy ones say so in their name.")


if __name__ == "__main__":
    main()

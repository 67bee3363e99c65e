"""A shop's bot: one system prompt that is read once, answers in fast mode, a second thought where the
first is unsure, drafts from answers given before, and a line of figures after every answer.

Run: python examples/customer_service_bot.py [MODEL] [--ask]

Without --ask it answers a few customers by itself; with it you are the customer.
"""

from __future__ import annotations

import argparse
import sys

from fastslow import LLM, Escalation, Metrics, Mode, SamplingParams

SYSTEM = (
    "You are the assistant of Wool & Tea, a small shop. Opening hours: Monday to Friday, 9 to 18. "
    "Parcels take 3 days, 7 abroad. Returns are free for 30 days. Answer in one or two sentences."
)
CUSTOMERS = (
    "When are you open?",
    "How long does a parcel to Norway take?",
    "When are you open?",
    "I bought 3 teapots for 18 euros each and send one back. What do I get back?",
)
TARGET_MS = 400.0
ANSWER = SamplingParams(max_tokens=48)


def mode() -> Mode:
    """Fast, with a target, begun again in deep mode if the first 12 tokens are unsure."""
    doubt = Escalation(below=0.35, window=6, within=12, how="restart")
    return Mode(name="bot", base="fast", latency_ms=TARGET_MS, escalate=doubt)


def line(metrics: Metrics) -> str:
    """Write a line of what a shop wants to know of an answer."""
    kept = "kept" if metrics.target_kept else "missed"
    parts = [
        f"first word after {1000 * metrics.ttft:.0f} ms",
        f"{1000 * metrics.tpot:.0f} ms a token, target of {metrics.target_ms:.0f} ms {kept}",
        f"{metrics.cached_tokens} tokens of the prompt known",
        f"{metrics.tokens_per_step:.1f} tokens a step",
    ]
    if metrics.escalated_at is not None:
        parts.append(metrics.decision)
    return "   [" + "; ".join(parts) + "]"


def reply(llm: LLM, talk: list[dict[str, str]], question: str) -> Metrics | None:
    """Stream one answer, and keep it in the talk."""
    talk.append({"role": "user", "content": question})
    said, metrics = "", None
    for piece in llm.stream_chat(talk, ANSWER, mode=mode()):
        print(piece.text, end="", flush=True)
        said += piece.text
        metrics = piece.output.metrics if piece.output is not None else metrics
    talk.append({"role": "assistant", "content": said})
    if metrics is not None:
        print("\n" + line(metrics))
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-moge", help="a folder or a name")
    parser.add_argument("--ask", action="store_true", help="ask yourself; an empty line ends")
    options = parser.parse_args()
    system = {"role": "system", "content": SYSTEM}
    with LLM(options.model) as llm:
        if options.ask:
            talk = [system]
            while question := input("> ").strip():
                reply(llm, talk, question)
            return
        seen = []
        for question in CUSTOMERS:  # each a new customer: only the system prompt is common
            print(f"> {question}")
            seen.append(reply(llm, [system], question))
    kept = sum(bool(m and m.target_kept) for m in seen)
    again = sum(bool(m and m.escalated_at is not None) for m in seen)
    print(f"\n{len(seen)} customers, {kept} within the target, {again} answered again in deep mode")


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, EOFError):
        sys.exit(130)

"""Chats that share their beginnings, on replicas: what the prefix caches hold of what one engine's would."""

from __future__ import annotations

import argparse
import asyncio
import random
from typing import Any

from figures import show
from serve_load.clients import Reply, ask, chat
from serve_load.front import Front
from serve_load.load import TOPICS

BOTS = 6  # system prompts
CHATS, TURNS = 48, 4
TOKENS = 12  # of an answer
AT_ONCE = 6  # chats
MODES = "fast", "deep"


def system_prompt(bot: int) -> str:
    """Some 300 tokens that all chats of a bot begin with."""
    draw = random.Random(bot)
    rules = (
        f"Rule {n}: speak of {draw.choice(TOPICS)} when asked of {draw.choice(TOPICS)}."
        for n in range(18)
    )
    return f"You are bot {bot}. " + " ".join(rules)


async def one_chat(address: str, number: int) -> list[Reply]:
    """The turns of a chat; each prompt has all that was said before."""
    bot = number % BOTS
    messages = [{"role": "system", "content": system_prompt(bot)}]
    found = []
    for turn in range(TURNS):
        question = f"Question {number}.{turn}: what do you know of {TOPICS[turn % len(TOPICS)]}?"
        messages.append({"role": "user", "content": question})
        body = chat("", TOKENS, mode=MODES[bot % len(MODES)], ignore_eos=False)
        reply = await ask(address, body | {"messages": messages})
        if not reply.whole:
            raise RuntimeError(f"no answer: {reply}")
        found.append(reply)
        messages.append({"role": "assistant", "content": reply.text})
    return found


async def all_chats(address: str) -> tuple[int, int]:
    """Tokens of prompts, and those of them that caches held."""
    numbers = iter(range(CHATS))
    found: list[Reply] = []

    async def worker() -> None:
        for number in numbers:
            found.extend(await one_chat(address, number))

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return sum(reply.prompt for reply in found), sum(reply.cached for reply in found)


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    found, rows = {}, []
    for name, replicas in (("one engine", 0), ("replicas", args.replicas)):
        with Front(args.model, args.more if replicas else [], replicas) as front:
            prompt, cached = asyncio.run(all_chats(front.address))
        found[name] = {"prompt": prompt, "cached": cached, "rate": cached / prompt}
        rows.append((name, f"{prompt}", f"{cached}", f"{cached / prompt:.1%}"))
    share = found["replicas"]["cached"] / found["one engine"]["cached"]
    show(
        ("", "prompt tokens", "cached", "hit rate"),
        rows,
        f"{CHATS} chats of {TURNS} turns with {BOTS} system prompts, half of them fast and half deep; "
        f"{args.replicas} replicas hit {share:.1%} of what one engine does.",
    )
    return found, [f"{share:.1%} of the hits of one engine"] if share < 0.9 else []

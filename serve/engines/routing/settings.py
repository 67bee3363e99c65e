"""Every constant of routing and scaling with its reason. None of them can change a token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Settings of a router: what it assumes of replicas, and how long it remembers."""

    # The index of prefixes
    first_block: int = 64  # characters: about one page of 16 tokens, below which no KV is shared
    # Later blocks are so much of the text before them. A match is known to an eighth, which is enough to
    # compare replicas, and 64k characters are some 50 blocks to look up and to hold, not 1,000.
    block_growth: float = 0.125
    most_blocks: int = 1_000_000  # over all replicas: a few hundred MB at most, and shared fairly
    page_characters: float = 4.0  # of a token

    # What a choice costs in expected seconds
    prompt_rate: float = 1000.0  # tokens a second, before a replica reported its own
    step_seconds: float = 0.05  # likewise
    places: int = 4  # answers that run together, before a replica reported its own
    # Steps by which a full replica sets a request back: an answer adds its share of the places. On small machines
    # it makes twenty steps each a tenth longer; on large ones, with many places, it hardly counts.
    full_steps: float = 8.0
    # For a quick request with a target, for each deep answer of a replica without a free place: it stays for long
    deep_steps: float = 8.0
    silent_seconds: float = 10.0  # without a report: each further one counts as one of waiting

    # How many replicas are looked at
    few: int = 8  # up to this number all are compared
    holders: int = 4  # of more, those that have read most of the prompt,
    # and as many at random (power of two choices): all routers see the same old reports
    choices: int = 2

    # Replicas that take no deep request while quick ones with a target come
    reserved_share: float = 0.25  # at least one, and never all
    # after the last one: pauses of a conversation are shorter; -1: none is reserved
    reserved_seconds: float = 120.0

    seed: int | None = None  # of the random choices; None: each router has its own

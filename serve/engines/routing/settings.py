"""Every constant of routing and scaling with its reason. None of them can change a token."""

from __future__ import annotations

from dataclasses import dataclass, fields

MOST = 1e9  # of any constant: more means no more, and sums and squares of such numbers stay finite


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """What the router assumes of replicas, and how long it remembers."""

    # The index of prefixes
    first_block: int = 64  # characters: about one page of 16 tokens, below which no KV is shared
    # Later blocks are so much of the text before them. A match is known to an eighth, which is enough to
    # compare replicas, and 64k characters are some 50 blocks to look up and to hold, not 1,000.
    block_growth: float = 0.125
    most_blocks: int = 1_000_000  # over all replicas: a few hundred MB at most, and shared fairly
    recent: int = 256  # prompts whose blocks are kept from the choice to the sending
    page_characters: float = 4.0  # of a token, until prompts have shown how many it is

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
    few: int = 8  # so many are all compared
    holders: int = 4  # of more, those that have read most of the prompt,
    choices: int = (
        2  # and as many at random (power of two choices): all routers see the same old reports
    )
    attempts: int = 3  # times that a random replica is drawn again because it is taken already

    # Replicas that take no deep request while quick ones with a target come
    reserved_share: float = 0.25  # at least one, and never all
    reserved_seconds: float = 120.0  # after the last one: pauses of a conversation are shorter

    # Memory
    most_sent: int = 100_000  # requests that were sent and are not over
    lost_seconds: float = 3600.0  # after which one that nobody ended is taken as over

    seed: int | None = None  # of the random choices; None: each router has its own

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name != "seed"):
            least = -1 if name == "reserved_seconds" else 0  # below 0 no replica is reserved
            if not least <= getattr(self, name) <= MOST:  # nor nan
                raise ValueError(
                    f"{name}={getattr(self, name)} must be between {least} and {MOST:g}"
                )
        whole = (
            "places",
            "first_block",
            "most_blocks",
            "recent",
            "few",
            "holders",
            "choices",
            "most_sent",
        )
        for name in whole:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("page_characters", "prompt_rate", "step_seconds", "lost_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")

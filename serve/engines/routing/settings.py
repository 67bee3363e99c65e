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
    # Steps by which an answer that runs beside it sets a request back, before replicas have shown how their
    # steps grow (`StepGrowth`): twenty of its next steps, each longer by `answer_growth`.
    answer_steps: float = 2.0
    # Likewise, more for a deep one and a quick request with a target, as it stays for long; where reports show how
    # steps grow, only while no place is free.
    deep_steps: float = 8.0
    answer_growth: float = 0.1  # of a step, for one more answer: a small machine's
    silent_seconds: float = (
        10.0  # behind the newest report: later each second counts as one of waiting
    )

    # How many replicas are looked at
    few: int = 8  # so many are all compared
    holders: int = 4  # of more, those that have read most of the prompt,
    choices: int = (
        2  # and so many at random (power of two choices): reports are old, and all see the same
    )
    attempts: int = 3  # times that a random replica is drawn again because it is taken already

    # The guard of quick requests with a target
    guard_seconds: float = 120.0  # after the last one: pauses of a conversation are shorter
    guard_look: float = 0.5  # seconds between two looks at how many there are: reports are older
    guard_release: float = 60.0  # seconds in which the number of kept replicas falls to a third
    urgent_each: float = (
        2.0  # on one replica, on average: at their 95th percentile few steps are shared
    )
    urgent_share: float = 0.125  # likewise, of the places of a replica: large machines have many
    # Once reports show how steps grow: so many that a step takes such a share of the smallest target, as prompts
    # are read beside them; and so many that places are left when they come in bunches, by so many times the
    # square root of their number, which is how far chance goes.
    target_share: float = 0.5
    bunch: float = 3.0
    # That may be wrong, so it is corrected: one more is kept where steps take a larger share of the target than
    # this or quick ones wait so long, and one less where steps are below `target_share` while deep ones wait, or
    # soon will, as the others are full to such a share.
    target_limit: float = 0.75
    deep_wait: float = 2.0  # seconds in a queue: shorter waits go by themselves
    full_share: float = 0.9
    guard_settle: float = (
        5.0  # seconds between two corrections: reports must show what the last one did
    )
    # Where steps with many deep ones take at most so many times those without, quick ones hardly feel them,
    # and the replicas that are kept for these take some, too: such a share of what was seen to be harmless.
    guard_growth: float = 1.2
    guard_proof: float = 0.125  # of the places of a replica: fewer answers prove nothing of a flood
    guard_room: float = 0.5
    urgent_spare: float = 1.5  # times what is there now: more may come in the next second

    # Memory
    most_sent: int = 100_000  # requests that were sent and are not over
    lost_seconds: float = 3600.0  # after which one that nobody ended is taken as over

    seed: int | None = (
        None  # of the random choices; None: another for each router, so that they differ
    )

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name != "seed"):
            least = -1 if name == "guard_seconds" else 0  # below 0 nothing is guarded
            if not least <= getattr(self, name) <= MOST:  # nor nan
                raise ValueError(
                    f"{name}={getattr(self, name)} must be between {least} and {MOST:g}"
                )
        whole = ("first_block", "most_blocks", "recent", "few", "holders", "choices", "most_sent")
        for name in whole:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        positive = (
            "page_characters",
            "prompt_rate",
            "step_seconds",
            "answer_growth",
            "guard_release",
            "urgent_each",
            "lost_seconds",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")

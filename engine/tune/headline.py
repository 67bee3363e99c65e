"""What was found, in a sentence."""

from __future__ import annotations

from fastslow.engine.params import Speculation
from fastslow.engine.tune.candidates import family, is_plain
from fastslow.engine.tune.found import Found


def headline(found: Found) -> str:
    """How much faster what was found is than plain decoding, and what it is."""
    tried = len([s for s in found.measured if not is_plain(s)])
    if is_plain(found.best):
        return (
            f"On {found.prompts} prompts, none of {tried} drafting settings is faster than plain "
            f"decoding with {found.plain_rate:.1f} tokens/s."
        )
    return (
        f"On {found.prompts} prompts, {_action(found.best)} is {found.ratio(found.best):.2f} times "
        f"as fast as plain decoding: {found.rate(found.best):.1f} instead of "
        f"{found.plain_rate:.1f} tokens/s."
    )


def _action(setting: Speculation) -> str:
    if setting.nodes is None:
        return f"drafting with {family(setting)}, as far as pays,"
    tokens = "1 token" if setting.nodes == 1 else f"up to {setting.nodes} tokens"
    return f"drafting {tokens} a step with {family(setting)}"

"""Whose cached prefixes and remembered answers a request shares."""

from __future__ import annotations

import json
from hashlib import blake2b

from fastslow.engine.params import shown

LONGEST_SALT = 256  # characters


def joined_key(own: str | None, salt: object) -> str | None:
    """The memory key of a request: that of its API key, divided further by the `cache_salt` that the
    request names. Two pairs never have one key, however their texts are put together.

    Raises:
        ValueError: the salt is no text, or too long.
    """
    if salt is None:
        return own
    if not isinstance(salt, str) or not 0 < len(salt) <= LONGEST_SALT:
        raise ValueError(f"cache_salt={shown(salt)} must be text of 1 to {LONGEST_SALT} characters")
    pair = json.dumps([own, salt]).encode()
    return f"salted-{blake2b(pair, digest_size=32).hexdigest()}"

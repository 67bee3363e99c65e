"""In how many bits weights and keys and values lie."""

from __future__ import annotations

from dataclasses import dataclass

from fastslow.engine.params import nearest

# bytes of a weight, of a weight of the head, and whether products run in int8
WEIGHTS = {
    "float32": (4.0, 4.0, False),
    "bf16": (2.0, 2.0, False),
    "w8a8": (1.0, 2.0, True),  # embedding and head stay in 16 bits
    "int8": (1.0 + 4 / 1024, 1.0 + 4 / 1024, True),  # this engine's: the head in int8, too
    "int4": (20 / 32, 1.0, True),  # Q4_1: 32 weights in 20 bytes
}
KV = {"float32": 4.0, "bf16": 2.0, "int8": 1.0}


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of one number.

    Attributes:
        weight: of a matrix in a layer.
        head: of the head over the vocabulary.
        kv: of keys and values.
        int8: whether products with weights run in int8, else in 16 bits.
    """

    weight: float
    head: float
    kv: float
    int8: bool

    @classmethod
    def of(cls, weights: str, kv: str) -> Precision:
        """ValueError for an unknown name (the nearest known one is told)."""
        for field, name, known in (("weights", weights, WEIGHTS), ("kv", kv, KV)):
            if name not in known:
                raise ValueError(f"{field}={name!r} is unknown{nearest(name, known)}")
        weight, head, int8 = WEIGHTS[weights]
        return cls(weight, head, KV[kv], int8)

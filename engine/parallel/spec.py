"""How many ranks share a model, and in which way: what a user may ask for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt

from fastslow.engine.params import Number, Params, nearest


class Parallel(Params):
    """ep * tp * dp ranks share one model.

    Attention is cut by heads over ep * tp ranks, or over tp where the heads do not divide, and runs
    that many times side by side on requests of its own. Routed experts are cut by whole groups over
    ep, and inside each expert over tp * dp; shared experts, dense MLPs, embedding and head over all
    ranks. Pangu Pro MoE's layout on eight devices (H2P: attention DP2 x TP4, experts EP4 x TP2,
    shared TP8; arXiv 2505.21411) is Parallel(ep=4, dp=2).
    """

    ep: Annotated[StrictInt, Field(ge=1)] = Field(
        default=1, description="expert parallel: ranks among which the groups of experts are dealt"
    )
    tp: Annotated[StrictInt, Field(ge=1)] = Field(
        default=1, description="tensor parallel: ranks that share every head split and every expert"
    )
    dp: Annotated[StrictInt, Field(ge=1)] = Field(
        default=1, description="data parallel: copies of attention, each with requests of its own"
    )
    timeout: Annotated[Number, Field(gt=0)] = Field(
        default=300.0, description="seconds that a rank waits for another one inside a step"
    )

    @property
    def ranks(self) -> int:
        """How many processes it takes."""
        return self.ep * self.tp * self.dp

    @classmethod
    def parse(cls, text: str) -> Parallel:
        """From "ep=8,tp=1,dp=1"; what is not named is 1. ValueError in one sentence."""
        known = ("ep", "tp", "dp")
        fields: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            name = name.strip()
            if name not in known:
                raise ValueError(f"parallel={text!r} names {name!r}{nearest(name, known)}")
            if name in fields:
                raise ValueError(f"parallel={text!r} names {name} twice")
            if not value.strip().isdecimal():
                raise ValueError(f"parallel={text!r}: {name} must be a whole number of at least 1")
            fields[name] = int(value)
        return cls(**fields)

    def __str__(self) -> str:
        return f"ep={self.ep},tp={self.tp},dp={self.dp}"

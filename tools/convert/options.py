"""The options of a conversion."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fastslow.engine.checked import Params


class ConvertOptions(Params):
    """How a dense model is divided; also the options of `fastslow convert`."""

    groups: int = Field(default=8, ge=1, le=256, description="routed groups")
    experts: int = Field(default=8, ge=1, le=256, description="experts a group")
    shared: int | None = Field(
        default=None, description="FFN neurons of the shared expert; default: about 7/12"
    )
    width: int | None = Field(
        default=None,
        description="FFN neurons of a routed expert; default: about 4/5 of its group's pool",
    )
    fast: int = Field(default=2, ge=0, description="groups that the preset fast runs")
    text: tuple[Path, ...] = Field(
        default=(),
        description="text file to calibrate with; may be repeated. Without any the model's own answers "
        "are all that it reads",
    )
    tokens: int = Field(default=24_576, ge=1, description="tokens to calibrate with")
    seed: int = Field(default=0, description="of all random choices")

    def model_post_init(self, _context: object) -> None:
        if self.fast > self.groups:
            raise ValueError(f"fast={self.fast} must be at most groups={self.groups}")

"""The options of quantising."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fastslow.engine.checked import Params


class QuantizeOptions(Params):
    """How a checkpoint is quantised; also options of `fastslow quantize`."""

    tokens: int = Field(default=8192, ge=1, description="tokens to calibrate with")
    least: int = Field(default=32, ge=1, description="tokens that every expert should see")
    most: int = Field(default=65536, ge=1, description="tokens that are looked at for that")
    embedding: Literal["auto", "int8", "float"] = Field(
        default="auto",
        description="embedding and head; auto: int8 where floats would keep the checkpoint above 0.52 of "
        "its size",
    )
    kv: bool = Field(default=False, description="also scales of keys and values in int8 (C8)")

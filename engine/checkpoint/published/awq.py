"""AWQ (Lin et al., arXiv 2306.00978) as AutoAWQ writes it, version GEMM."""

from __future__ import annotations

from typing import ClassVar, Literal

from fastslow.engine.checkpoint.fused import Expected, Facts
from fastslow.engine.checkpoint.published.grouped import Grouped, unpack
from fastslow.engine.checkpoint.published.reader import InGroups, Matrix, Raw, form_of

ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where outputs 0 to 7 lie in a word


class Awq(InGroups):
    """A word has the numbers of eight outputs, or their zero points."""

    label: ClassVar[str] = "AWQ"
    bits: Literal[4] = 4
    version: Literal["gemm", "GEMM"] = "gemm"

    def tensors(self, outputs: int, inputs: int) -> dict[str, Expected]:
        groups, words = -(-inputs // self.group(inputs)), outputs // 8
        return {
            "qweight": Expected(((inputs, words),), ("I32",)),
            "qzeros": Expected(((groups, words),), ("I32",)),
            "scales": Expected(((groups, outputs),)),
        }

    def form(self, facts: Facts, outputs: int, inputs: int) -> str:
        return form_of(4, inputs, self.group(inputs))

    def matrix(self, raw: Raw, outputs: int, inputs: int) -> Matrix:
        numbers, zero = (
            unpack(raw[name], 4).unflatten(-1, (-1, 8))[..., ORDER].flatten(-2).T.contiguous()
            for name in ("qweight", "qzeros")
        )
        return Grouped(numbers, raw["scales"].T.float(), zero, 4, self.group(inputs))

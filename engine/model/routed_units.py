"""The routed groups or experts of a model, of which a request may run fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # the server's own process knows modes, and imports no torch
    from fastslow.engine.model.shape import DecoderShape

Unit = Literal["groups", "experts"]

FIELDS = {
    "groups": "this model's experts are in groups, and the field groups says how many run",
    "experts": "this model has no groups, and the field experts says how many experts run",
}
EVERY_STEP = 8  # up to this number of experts each count is compared; then powers of two


class RoutedUnits(NamedTuple):
    """The field of a mode that counts what runs for a token, and its range.

    name: "experts" where a token takes the best of all experts, else "groups". most: what the model itself
    runs, 0 for a dense one. least: 1 where there is no shared expert to run alone."""

    name: Unit
    most: int
    least: int = 0

    @classmethod
    def of(cls, config: DecoderShape) -> RoutedUnits:
        if (routed := config.routed) is None:
            return cls("groups", 0)
        return cls(routed.router.unit, routed.router.units, int(routed.shared is None))

    @property
    def drafted(self) -> int:
        """Number that runs where the model drafts for itself: 0 beside shared experts, or a quarter without them."""
        return max(1, self.most // 4) if self.least else 0

    @property
    def steps(self) -> list[int]:
        """Counts that are worth a comparison, `most` last."""
        numbers = range(self.least, self.most + 1)
        if self.name == "groups" or self.most <= EVERY_STEP:
            return list(numbers)
        return [n for n in numbers if n & (n - 1) == 0 or n == self.most]

    def running(self, count: int | None) -> dict[str, int]:
        """The count under its name, None spelled out; nothing for a dense model."""
        return {self.name: self.most if count is None else count} if self.most else {}

    def checked(self, what: str, groups: int | None, experts: int | None) -> int | None:
        """The count that is given in either field; None = all. what: whose fields they are, for the message.

        ValueError: it is given in the other kind's field, or out of range."""
        name: Unit = "experts" if groups is None else "groups"
        count = experts if groups is None else groups
        if count is None:
            return None
        if not self.most:
            raise ValueError(f"{what}{name}={count} must be left out: this model is dense")
        if name != self.name:
            raise ValueError(f"{what}{name}={count} must be left out: {FIELDS[self.name]}")
        if not self.least <= count <= self.most:
            why = ": no shared expert would run instead" if count < self.least else ""
            raise ValueError(f"{what}{name}={count} is outside {self.least}..{self.most}{why}")
        return None if count == self.most else count

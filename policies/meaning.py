"""A mode, described for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode, Phase, SamplingParams, Speculation

THINKING = {"off": "off", "on": "on, where the model can", "auto": "as the model likes"}
BRIEFLY = {"off": "answers at once", "on": "thinks first", "auto": "thinks where the model likes"}
CHOSEN = "as the preset that is taken"


def meaning(mode: Mode, units: RoutedUnits) -> dict[str, str]:
    """Describe a mode of `find_mode` in a few words for people: groups (or experts), thinking, budget,
    sampling, drafter, latency, escalation -> text, "-" for nothing."""
    own = mode.model_fields_set if mode.auto else {units.name, "thinking"}
    return {
        units.name: _running(mode.routed, units.most) if units.name in own else CHOSEN,
        "thinking": _thinking(mode) if "thinking" in own else CHOSEN,
        "budget": _budget(mode),
        "sampling": "; ".join([_sampling(mode.sampling), *_parts(mode, _phase)]),
        "drafter": "; ".join([_drafter(mode.speculation), *_parts(mode, _phase_drafts)]),
        "latency": _latency(mode),
        "escalation": _escalation(mode),
    }


def in_a_line(mode: Mode, units: RoutedUnits, thinks: bool) -> str:
    """A mode's own description, or else what its fields mean. thinks: whether the model can."""
    if mode.description:
        return mode.description
    means = meaning(mode, units)
    parts = [BRIEFLY[mode.thinking]] if thinks else []
    noun = "experts" if units.name == "experts" else "groups of experts"
    parts += [f"{means[units.name]} {noun}"] if units.most else []
    sides = (means[side] for side in ("budget", "latency", "escalation"))
    return "; ".join([*parts, *(side for side in sides if side != "-")])


def _running(count: int | None, most: int) -> str:
    if not most:
        return "dense"
    if count is None:
        return f"all {most}"
    return f"{count} of {most}" if count else f"shared experts only, 0 of {most}"


def _thinking(mode: Mode) -> str:
    enforced = mode.thinking == "off" and mode.thinking_budget is None
    end = "; a chat's thought is closed as soon as it opens" if enforced else ""
    return THINKING[mode.thinking] + end


def _budget(mode: Mode) -> str:
    parts = []
    if (most := mode.thinking_budget) is not None:
        parts.append(f"at most {most} tokens of thought")
        if mode.thinking_soft:
            parts.append(f"over the last {mode.thinking_soft} the model closes more readily")
    if mode.turn_budget is not None:
        parts.append(f"at most {mode.turn_budget} in a turn of the user")
    if mode.answer_room:
        kept = "a part" if mode.answer_room == "auto" else f"{mode.answer_room} tokens"
        parts.append(f"{kept} of max_tokens kept for the answer")
    if mode.warn_at is not None:
        parts.append(f"a warning once {mode.warn_at:.0%} of the budget is used")
    if mode.loop is not None:
        parts.append("ended where a thought goes round in circles")
    if (rule := mode.confidence) is not None:
        parts.append(
            f"ended where the answer is the same {rule.times} times in a row, asked every {rule.every} tokens"
        )
    if parts and mode.closing:
        parts.append(f"then {mode.closing.strip()!r}")
    return "; ".join(parts) or "-"


def _sampling(params: SamplingParams | None) -> str:
    if params is None:
        return "the call's own, else greedy"
    fields = {name: getattr(params, name) for name in sorted(params.model_fields_set)}
    heat = fields.pop("temperature", params.temperature)
    shown = [f"temperature {heat:g}" if heat else "greedy"]
    return ", ".join([*shown, *(f"{name} {value}" for name, value in fields.items())])


def _parts(mode: Mode, said: Callable[[Phase], str]) -> Iterator[str]:
    """Yield what is other in the thought and in the answer."""
    for name, phase in (("thought", mode.thought), ("answer", mode.answer)):
        if phase is not None and (words := said(phase)):
            yield f"in the {name} {words}"


def _phase(phase: Phase) -> str:
    given = phase.model_dump(exclude={"speculation"}, exclude_none=True)
    return ", ".join(f"{name} {value}" for name, value in sorted(given.items()))


def _phase_drafts(phase: Phase) -> str:
    return "" if phase.speculation is None else _drafter(phase.speculation)


def _drafter(speculation: Speculation | None) -> str:
    if speculation is None:
        return "the engine's own"
    if speculation.drafter == "off":
        return "off"
    nodes = "" if speculation.nodes is None else f", {speculation.nodes} tokens a step"
    rule = "" if speculation.accept == "auto" else f", {speculation.accept}"
    return speculation.drafter + nodes + rule


def _latency(mode: Mode) -> str:
    if mode.latency_ms is None:
        return "-"
    cuts = " and ".join(p if p == "draft" else f"{p} (lossy)" for p in mode.may_shorten)
    return f"{mode.latency_ms:g} ms" + (f", cutting {cuts} if need be" if cuts else "")


def _escalation(mode: Mode) -> str:
    if (rule := mode.escalate) is None:
        return "-"
    lossy = ", lossy" if rule.how == "keep" else ""
    over = f"{rule.window} tokens" if rule.window > 1 else "a token"
    within = "" if rule.within is None else f", in the first {rule.within}"
    return (
        f"to {rule.to} where the confidence over {over} is below {rule.below:g}{within} "
        f"({rule.how}{lossy})"
    )

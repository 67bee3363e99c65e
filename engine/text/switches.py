"""Switches by which a chat template is asked to think, or not to: found by rendering it both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from fastslow.engine.params import Effort, Thinking

FLAGS = "enable_thinking", "thinking"  # variables: Qwen's name and DeepSeek's
EFFORT = "reasoning_effort"
BUDGET = "thinking_budget"  # a variable: Seed-OSS's name
LEVELS = "none", "minimal", "low", "medium", "high"
EFFORTS: dict[str, dict[str, Any]] = {  # the fields of a mode that each of them means
    "none": {"base": "fast", "thinking": "off"},
    "minimal": {"base": "fast"},
    "low": {"base": "deep", "thinking_budget": 1024},
    "medium": {"base": "deep", "thinking_budget": 4096},
    **{name: {"base": "deep"} for name in ("high", "xhigh", "max")},
}
USUAL = "low", "medium", "high"  # of a template that writes whatever it is given
WORDS = "/no_think", "/nothink"

SAID, UNHEARD = "Qzx7", "qzx8"  # texts that no template has
USER = {"role": "user", "content": SAID}
CHATS = ([USER], [{"role": "system", "content": SAID}, USER])

Chat = Sequence[Mapping[str, Any]]
Render = Callable[[Chat, Mapping[str, object]], str | None]


class ThinkingSwitch(NamedTuple):
    """Switch of a template that turns thinking off, or down.

    kind: "flag": variables that are true or false; "effort": a variable with levels, from the least to the
    most; "word": a word in the user's latest message; "budget": how many tokens it may think, of which 0 is no thought;
    "none": nothing. names: of the variables, or the word."""

    kind: Literal["flag", "effort", "word", "budget", "none"] = "none"
    names: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    budget: str = ""  # the variable that tells the model how many tokens it may think

    def __str__(self) -> str:
        match self.kind:
            case "flag":
                return f"{' and '.join(self.names)}: true or false"
            case "effort":
                return f"{self.names[0]}: {', '.join(self.levels)}"
            case "word":
                return f"{self.names[0]} in the user message"
            case "budget":
                return f"{self.names[0]}: 0, or how many tokens"
        return "none"

    @property
    def lessens(self) -> bool:
        """True where "off" asks for a shorter thought: the model does not do without."""
        return self.kind == "effort" and self.levels[0] != "none"

    def variables(self, thinking: Thinking) -> dict[str, object]:
        """Return the variables that the template is given; "auto" leaves it the template's default."""
        if self.kind == "budget" and thinking == "off":
            return dict.fromkeys(self.names, 0)
        if thinking == "auto" or self.kind not in ("flag", "effort"):
            return {}
        on = thinking == "on"
        return dict.fromkeys(
            self.names, on if self.kind == "flag" else self.levels[-1 if on else 0]
        )


def nearest_level(effort: Effort, levels: tuple[str, ...]) -> str:
    """The model's own level of effort that comes nearest; of two as near, the higher one."""
    every = [*EFFORTS]
    known = [level for level in levels if level in EFFORTS]
    place = every.index(effort)
    if not known:
        return levels[-1] if place >= every.index("high") else levels[0]
    return min(reversed(known), key=lambda level: abs(every.index(level) - place))


def find_switch(render: Render, source: str) -> ThinkingSwitch:
    """The switch of a template: what changes its text. A flag is taken before levels, and these before a word.

    render: messages and variables to text; None where the template refuses them. What `source` does not name
    is not tried."""

    def texts(variables: Mapping[str, object]) -> list[str | None]:
        return [render(chat, variables) for chat in CHATS]

    def flips(name: str) -> bool:
        return _differ(texts({name: True}), texts({name: False}))

    tells = BUDGET in source and _differ(texts({BUDGET: 300}), texts({BUDGET: 900}))
    made = partial(ThinkingSwitch, budget=BUDGET if tells else "")
    flags = tuple(name for name in FLAGS if name in source and flips(name))
    if flags:
        return made("flag", flags)
    if EFFORT in source:
        levels = _levels(lambda level: texts({EFFORT: level}), source)
        if levels:
            return made("effort", (EFFORT,), levels)
    for word in (word for word in WORDS if word in source):
        if _knows(render, word):
            return made("word", (word,))
    stops = tells and all(_differ(texts({BUDGET: 0}), texts(x)) for x in ({}, {BUDGET: 900}))
    return made("budget", (BUDGET,)) if stops else made()


def _differ(some: Iterable[str | None], others: Iterable[str | None]) -> bool:
    """Compare renderings of a chat pairwise, without those that the template refused."""
    return any(a != b for a, b in zip(some, others) if a is not None and b is not None)


def _levels(texts: Callable[[str], list[str | None]], source: str) -> tuple[str, ...]:
    """Return the effort levels that change the rendered prompt."""
    if any(UNHEARD in (text or "").lower() for text in texts(UNHEARD)):
        return USUAL
    found: dict[tuple[str | None, ...], str] = {}
    for level in ("medium", *LEVELS):  # the first stands for those that the template does not name
        text, named = tuple(texts(level)), f"'{level}'" in source or f'"{level}"' in source
        if any(part is not None for part in text) and (named or text not in found):
            found[text] = level
    return tuple(level for level in LEVELS if level in found.values()) if len(found) > 1 else ()


def _knows(render: Render, word: str) -> bool:
    """Tell whether a word in a message does more than to be written, or to be left out."""
    said = f"{SAID} {word}"
    plain, asked = render([USER], {}), render([{**USER, "content": said}], {})
    if plain is None or asked is None:
        return False
    ways = plain, plain.replace(SAID, said), plain.replace(SAID, said, 1)
    return "".join(asked.split()) not in ("".join(way.split()) for way in ways)

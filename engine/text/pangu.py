"""openPangu's turns, and the switches by which a user's turn asks for fast or slow thinking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastslow.engine.params import Thinking
from fastslow.engine.text.message import Message, check_messages
from fastslow.engine.text.special import TURN_CLOSE, TURN_OPEN
from fastslow.engine.text.template import ChatTemplate

NAMES = {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具"}
NO_THINK, AUTO_THINK = " /no_think", " /auto_think"


class PanguTemplate:
    """`[unused9]用户：...[unused10]` for each turn; a chat without a system turn gets an empty one.

    openPangu thinks slowly unless told otherwise, so "on" needs no switch.
    """

    add_special = True
    source = ""

    def render(
        self,
        messages: Sequence[Message],
        thinking: Thinking = "auto",
        add_generation_prompt: bool = True,
    ) -> str:
        """See `ChatTemplate.render`; `thinking` is PanguSwitch's affair."""
        check_messages(messages)
        turns = [(NAMES[message["role"]], message["content"]) for message in messages]
        if messages[0]["role"] != "system":
            turns.insert(0, (NAMES["system"], ""))
        text = "".join(f"{TURN_OPEN}{name}：{content}{TURN_CLOSE}" for name, content in turns)
        return text + (f"{TURN_OPEN}{NAMES['assistant']}：" if add_generation_prompt else "")


class PanguSwitch:
    """Another template, with openPangu's thinking switch at the end of the last user's turn."""

    def __init__(self, inner: ChatTemplate, architecture: str) -> None:
        """`architecture`: config.json's; only PanguEmbedded models know " /auto_think"."""
        self._inner = inner
        self.add_special = inner.add_special
        self.source = inner.source
        self._switches: Mapping[Thinking, str] = {"off": NO_THINK}
        if architecture.startswith("PanguEmbedded"):
            self._switches = {"off": NO_THINK, "auto": AUTO_THINK}

    def render(
        self,
        messages: Sequence[Message],
        thinking: Thinking = "auto",
        add_generation_prompt: bool = True,
    ) -> str:
        """See `ChatTemplate.render`. A switch that the user wrote is neither doubled nor, by
        "auto", overruled."""
        check_messages(messages)
        switch = self._switches.get(thinking, "")
        turns = [dict(message) for message in messages]
        user = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
        if user is not None and not _switched(user["content"], thinking):
            user["content"] += switch
        return self._inner.render(turns, thinking, add_generation_prompt)


def _switched(content: str, thinking: Thinking) -> bool:
    ending = content.rstrip()
    written = [switch for switch in (NO_THINK, AUTO_THINK) if ending.endswith(switch.strip())]
    return bool(written) if thinking == "auto" else NO_THINK in written

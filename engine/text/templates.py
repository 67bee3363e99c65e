"""Chat templates: messages become the text of a prompt, as the checkpoint's template says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from loguru import logger

from fastslow.engine.host.files import is_file
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.params import Thinking, shown
from fastslow.engine.text.gguf import settings_of
from fastslow.engine.text.sandbox import Sandbox, limited
from fastslow.engine.text.settings import Settings, read_data
from fastslow.engine.text.vocabulary import TURN_CLOSE, TURN_OPEN, Tokenizer, is_pangu

Message = Mapping[str, object]  # role, content, and whatever else a template may know
Turn = Mapping[str, Any]  # the same, checked: its content is text

ROLES = ("system", "user", "assistant", "tool")


def check_messages(messages: Sequence[Message]) -> list[Turn]:
    """The messages, with parts of a content joined by line breaks.

    Raises ValueError with one sentence if there is no message, or for the first one whose role is not
    among ROLES, whose content is neither a string nor a list of parts `{"type": "text", "text": ...}`,
    or that is a `prefix` without being the last one and the assistant's.
    """
    if not messages:
        raise ValueError("messages is empty; it needs at least one message")
    checked = []
    for index, message in enumerate(messages):
        if not hasattr(message, "get"):
            kind = type(message).__name__
            raise ValueError(f"messages[{index}] is a {kind}; it must have a role and a content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(
                f"messages[{index}].role is {shown(role)}; it must be one of {', '.join(ROLES)}"
            )
        if (prefix := message.get("prefix")) is not None:
            if not isinstance(prefix, bool):
                raise ValueError(
                    f"messages[{index}].prefix is {shown(prefix)}; it must be true or false"
                )
            if prefix and (role != "assistant" or index + 1 < len(messages)):
                raise ValueError(
                    f"messages[{index}].prefix is true, but only the last message may be the "
                    "beginning of an answer, and must be the assistant's"
                )
        match content:
            case str():
                checked.append(message)
            case list() | tuple():
                place = f"messages[{index}].content"
                text = "\n".join(_part(f"{place}[{i}]", part) for i, part in enumerate(content))
                checked.append({**message, "content": text})
            case None:
                raise ValueError(f"messages[{index}].content is missing; it must be a string")
            case _:
                kind = type(content).__name__
                raise ValueError(f"messages[{index}].content is a {kind}; it must be a string")
    return checked


def _part(place: str, part: object) -> str:
    """The text of a part of a content; `place`: where it is, for messages."""
    if not isinstance(part, Mapping):
        raise ValueError(f"{place} is a {type(part).__name__}; a part must have a type and a text")
    if (kind := part.get("type")) != "text":
        raise ValueError(f"{place}.type is {shown(kind)}; this engine takes only 'text'")
    if not isinstance(text := part.get("text"), str):
        raise ValueError(f"{place}.text is a {type(text).__name__}; it must be a string")
    return text


class ChatTemplate(ABC):
    """Renders a chat.

    Attributes:
        add_special: what `Tokenizer.encode` is to be given with the rendered text: False if the
            template writes its own bos.
        source: the text of a template file, "" for built-in templates.
    """

    add_special = True
    source = ""

    def render(
        self,
        messages: Sequence[Turn],
        thinking: Thinking = "auto",
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt's text.

        `messages`: at least one; see `check_messages`.
        `thinking`: "off" and "on" ask the model for it in the model's own way, if it has one;
        "auto" leaves the model its default. `add_generation_prompt`: end where the assistant's
        answer begins. Raises ValueError for bad messages, with the template's own words if it is
        the template that refuses them.
        """
        return self._render(check_messages(messages), thinking, add_generation_prompt)

    @abstractmethod
    def _render(self, messages: Sequence[Turn], thinking: Thinking, prompted: bool) -> str: ...


LONGEST = 2**17  # characters of a template: several times the longest one so far
SWITCHES = "enable_thinking", "thinking"  # Qwen's name and DeepSeek's; a template has one or none


class JinjaTemplate(ChatTemplate):
    """A template in transformers' dialect of Jinja.

    It runs in a `Sandbox`. It sees
    `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, empty `tools` and `documents`,
    and the switch `enable_thinking`, which some call `thinking`, unless thinking is "auto".
    """

    add_special = False

    def __init__(
        self, source: str, name: str, bos_token: str | None, eos_token: str | None
    ) -> None:
        """`name`: where the source is from, for messages. Raises ValueError if it is not Jinja, or
        longer than LONGEST."""
        self.source = source
        self._name = name
        if len(source) > LONGEST:
            raise ValueError(f"{name} has {len(source)} characters; at most {LONGEST} are taken")
        self._given = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        try:
            with limited():
                self._template = Sandbox().from_string(source)
        except Exception as error:  # noqa: BLE001 - Python's compiler has its own for what is too deep
            line = f" line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ValueError(f"{name}{line}: {_said(error)}") from None

    def _render(self, messages: Sequence[Turn], thinking: Thinking, prompted: bool) -> str:
        given: dict[str, Any] = {"messages": messages, "tools": None, "documents": None}
        if thinking != "auto":
            given |= dict.fromkeys(SWITCHES, thinking == "on")
        try:
            with limited(messages):
                return self._template.render(**self._given, **given, add_generation_prompt=prompted)
        except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
            raise ValueError(f"{self._name}: {_said(error)}") from None


def _said(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def load_template(folder: str | Path, tokenizer: Tokenizer, architecture: str = "") -> ChatTemplate:
    """The chat template of a checkpoint folder.

    `chat_template.jinja` wins, then tokenizer_config.json's `chat_template` (of a list of named
    ones, "default"), then openPangu's own if the tokenizer has its turn marks, then `User: ...`
    lines, with a warning. `architecture` is config.json's. Raises ValueError for a broken template.
    """

    folder = Path(folder)
    settings = settings_of(folder)
    template: ChatTemplate
    if (found := _find(folder, settings)) is not None:
        source, name = found
        template = JinjaTemplate(source, name, settings.bos_token, settings.eos_token)
    elif is_pangu(tokenizer):
        template = PanguTemplate()
    else:
        logger.warning("{} has no chat template: messages become plain 'User: ...' lines", folder)
        template = PlainTemplate()
    # openPangu's published template leaves the switch to the user's turn.
    if is_pangu(tokenizer) and "no_think" not in template.source:
        return PanguSwitch(template, architecture)
    return template


def _find(folder: Path, settings: Settings) -> tuple[str, str] | None:
    """A template's text and the name of its place, for messages."""
    path = folder / "chat_template.jinja"
    if is_file(path):
        try:
            return read_data(path, 4 * LONGEST).decode("utf-8"), path.name
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
    name = "tokenizer_config.json: chat_template"
    name = "tokenizer.chat_template" if is_gguf(folder) else name
    found = settings.chat_template
    if isinstance(found, list):
        each = [item for item in found if isinstance(item, dict)]
        named = {str(item.get("name")): item.get("template") for item in each}
        if "default" not in named:
            raise ValueError(f"{name} has no template named 'default'")
        found = named["default"]
    match found:
        case None:
            return None
        case str():
            return found, name
        case _:
            raise ValueError(f"{name} must be a string or a list of named ones")


class PlainTemplate(ChatTemplate):
    """`User: ...` and `Assistant: ...`, one line to a turn. It knows no way to ask for thinking."""

    def _render(self, messages: Sequence[Turn], thinking: Thinking, prompted: bool) -> str:
        lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*lines, "Assistant:"] if prompted else lines)


NAMES = {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具"}
NO_THINK, AUTO_THINK = " /no_think", " /auto_think"


class PanguTemplate(ChatTemplate):
    """`[unused9]用户：...[unused10]` for each turn; a chat without a system turn gets an empty one.

    openPangu thinks slowly unless told otherwise, so "on" needs no switch.
    """

    def _render(self, messages: Sequence[Turn], thinking: Thinking, prompted: bool) -> str:
        turns = [(NAMES[message["role"]], message["content"]) for message in messages]
        if messages[0]["role"] != "system":
            turns.insert(0, (NAMES["system"], ""))
        text = "".join(f"{TURN_OPEN}{name}：{content}{TURN_CLOSE}" for name, content in turns)
        return text + (f"{TURN_OPEN}{NAMES['assistant']}：" if prompted else "")


class PanguSwitch(ChatTemplate):
    """Another template, with openPangu's thinking switch at the end of the last user's turn."""

    def __init__(self, inner: ChatTemplate, architecture: str) -> None:
        """`architecture`: config.json's; only PanguEmbedded models know " /auto_think"."""
        self._inner = inner
        self.add_special = inner.add_special
        self.source = inner.source
        self._switches: Mapping[Thinking, str] = {"off": NO_THINK}
        if architecture.startswith("PanguEmbedded"):
            self._switches = {"off": NO_THINK, "auto": AUTO_THINK}

    def _render(self, messages: Sequence[Turn], thinking: Thinking, prompted: bool) -> str:
        """A switch that the user wrote is not doubled, and "auto" does not overrule it."""
        switch = self._switches.get(thinking, "")
        turns = [dict(message) for message in messages]
        user = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
        if user is not None and not _switched(user["content"], thinking):
            user["content"] += switch
        return self._inner.render(turns, thinking, prompted)


def _switched(content: str, thinking: Thinking) -> bool:
    ending = content.rstrip()
    written = [switch for switch in (NO_THINK, AUTO_THINK) if ending.endswith(switch.strip())]
    return bool(written) if thinking == "auto" else NO_THINK in written

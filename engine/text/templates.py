"""Chat templates: messages become the text of a prompt, as the checkpoint's template says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import jinja2
from jinja2 import meta
from loguru import logger

from fastslow.engine.host.files import is_file
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.params import Thinking, shown
from fastslow.engine.text.messages import (
    RESPONSES,
    Turn,
    as_texts,
    check_messages,
    with_responses,
)
from fastslow.engine.text.sandbox import Sandbox, limited
from fastslow.engine.text.switches import ThinkingSwitch, find_switch
from fastslow.engine.text.tokenizer_files.config import Settings, read_data, settings_of
from fastslow.engine.text.tool_formats import GENERIC, PANGU, ToolFormat, format_of, plain_turns
from fastslow.engine.text.vocabulary import TURN_CLOSE, TURN_OPEN, Tokenizer, is_pangu

Variables = Mapping[str, object]  # of a template, by name


LONGEST = 2**17  # characters of a template: several times the longest one so far
GIVEN = {"messages", "add_generation_prompt", "bos_token", "eos_token"}  # a chat's own variables
PROBE = "probe"  # a word that is looked for in what a template writes
NO_THINK, AUTO_THINK = " /no_think", " /auto_think"
# `User: ...` and `Assistant: ...`, one line to a turn
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}"
    "{{ '' if loop.last and not add_generation_prompt else '\\n' }}{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)
# one turn after the other; a chat without a system turn gets an empty one
PANGU_TURNS = (
    "{% set names = {'system': '系统', 'user': '用户', 'assistant': '助手', 'tool': '工具'} %}"
    f"{{% if messages[0].role != 'system' %}}{TURN_OPEN}系统：{TURN_CLOSE}{{% endif %}}"
    "{% for m in messages %}"
    f"{TURN_OPEN}{{{{ names[m.role] }}}}：{{{{ m.content }}}}{TURN_CLOSE}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{TURN_OPEN}助手：{{% endif %}}"
)


class ChatTemplate:
    """A template in transformers' dialect of Jinja, in a `Sandbox`, which renders chats.

    source: its text. add_special: what `Tokenizer.encode` is to be given with a chat's text: False where the template
    writes its own bos. words: by "off" and "auto", what is put at the end of the user's latest message, with the
    space before it."""

    def __init__(
        self,
        source: str,
        name: str = "",
        bos_token: str | None = None,
        eos_token: str | None = None,
        *,
        add_special: bool = False,
    ) -> None:
        """`name`: where the source is from, for messages. ValueError if it is not Jinja, or too long."""
        self.source, self.add_special = source, add_special
        self.words: Mapping[Thinking, str] = {}
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

    @cached_property
    def names(self) -> frozenset[str]:
        """Variables that a caller may give it beside `tools`, which a template that does not read them gets as text."""
        sandbox = Sandbox()
        read = meta.find_undeclared_variables(sandbox.parse(self.source))
        return frozenset(read - GIVEN - sandbox.globals.keys())

    @cached_property
    def found(self) -> ThinkingSwitch:
        """What the template itself offers to turn."""

        def text(messages: Sequence[Turn], variables: Variables) -> str | None:
            try:
                return self._written(messages, True, {"strftime_now": str, **variables})
            except Exception:  # noqa: BLE001 - it refuses some of what is tried
                return None

        with limited():  # once for all that is tried
            return find_switch(text, self.source)

    @property
    def reads_tools(self) -> bool:
        """True where the template describes tools and writes calls itself."""
        return "tools" in self.names

    @property
    def switch(self) -> ThinkingSwitch:
        """The switch that "off" and "on" turn."""
        return ThinkingSwitch("word", (self.words["off"].strip(),)) if self.words else self.found

    def render(
        self,
        messages: Sequence[Turn],
        thinking: Thinking = "auto",
        add_generation_prompt: bool = True,
        variables: Variables = MappingProxyType({}),
    ) -> str:
        """The prompt's text.

        `thinking`: "off" and "on" ask the model for it in the model's own way, if it has one; "auto" leaves the model
        its default. `add_generation_prompt`: end where the assistant's answer begins. `variables`: the caller's,
        which win over those of the switch. ValueError for bad messages, with the template's own words if it is the
        template that refuses them, and for variables that it does not read."""
        for name in variables:
            if name not in self.names and name != "tools":
                known = ", ".join(sorted(self.names)) or "none"
                raise ValueError(
                    f"chat_template_kwargs: the chat template reads no variable {shown(name)}; it reads {known}"
                )
        turns = check_messages(messages)
        if not self.reads_tools:
            tools = variables.get("tools") or []
            variables = {name: value for name, value in variables.items() if name != "tools"}
            if not isinstance(tools, list | tuple):
                raise ValueError(f"tools={shown(tools)} must be a list")
            if tools or any("tool_calls" in turn for turn in turns):
                given = tools, self.calls, self.writes_system, self.source == PANGU_TURNS
                turns = plain_turns(turns, *given)
        turns = self._with_word(turns, thinking) if self.words else turns
        return self._render(turns, thinking, add_generation_prompt, variables)

    def _with_word(self, turns: Sequence[Turn], thinking: Thinking) -> list[Turn]:
        """A switch that the caller wrote is not doubled, and "auto" does not overrule it."""
        changed = [dict(turn) for turn in turns]
        for turn in [turn for turn in changed if turn["role"] == "user"][-1:]:
            ending, off = turn["content"].rstrip(), self.words["off"]
            written = [word for word in (off, AUTO_THINK) if ending.endswith(word.strip())]
            if not (written if thinking == "auto" else off in written):
                turn["content"] += self.words.get(thinking, "")
        return [*changed]

    @cached_property
    def calls(self) -> ToolFormat:
        """The format that its model writes calls in."""
        found = format_of(self.source)
        if not self.reads_tools:  # then the block says how, and a model may know openPangu's marks
            return found if found is PANGU else GENERIC
        return found or GENERIC

    @cached_property
    def writes_system(self) -> bool:
        """A system's turn is in the text."""
        turns = [{"role": "system", "content": PROBE}, {"role": "user", "content": ""}]
        return PROBE in (self._tried(turns) or "")

    @cached_property
    def _joins_arguments(self) -> bool:
        """True where the template takes the arguments of calls as text, not as objects."""
        function = {"name": PROBE, "arguments": {PROBE: 1}}
        call = {"type": "function", "id": "123456789", "function": function}
        turns: list[Turn] = [
            {"role": "user", "content": ""},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "", "name": PROBE, "tool_call_id": "123456789"},
        ]
        return self._tried(turns) is None and self._tried([*map(as_texts, turns)]) is not None

    def _tried(self, turns: Sequence[Turn]) -> str | None:
        """Render turns, for a trial; None: the template refuses them."""
        try:
            with limited():
                return self._written(turns, True, {})
        except Exception:  # noqa: BLE001 - a template is a program: it may raise anything
            return None

    def _render(
        self, messages: Sequence[Turn], thinking: Thinking, prompted: bool, variables: Variables
    ) -> str:
        if any("tool_calls" in message for message in messages) and self._joins_arguments:
            messages = [*map(as_texts, messages)]
        if RESPONSES in self.source:
            messages = with_responses(messages)
        given = {**self.found.variables(thinking), **variables}
        try:
            with limited([messages, given]):
                return self._written(messages, prompted, given)
        except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
            raise ValueError(f"{self._name}: {_said(error)}") from None

    def _written(self, messages: Sequence[Turn], prompted: bool, variables: Variables) -> str:
        empty = {"tools": None, "documents": None}
        chat = {"messages": messages, "add_generation_prompt": prompted}
        return self._template.render(self._given | empty | {**variables} | chat)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def load_template(folder: str | Path, tokenizer: Tokenizer, architecture: str = "") -> ChatTemplate:
    """The chat template of a checkpoint folder.

    `chat_template.jinja` wins, then tokenizer_config.json's `chat_template` (of several, "default"), then
    openPangu's own if the tokenizer has its turn marks, then `User: ...` lines, with a warning."""

    folder = Path(folder)
    settings = settings_of(folder)
    if (found := _find(folder, settings)) is not None:
        source, name = found
        template = ChatTemplate(source, name, settings.bos_token, settings.eos_token)
    elif is_pangu(tokenizer):
        template = ChatTemplate(PANGU_TURNS, add_special=True)
    else:
        logger.warning("{} has no chat template: messages become plain 'User: ...' lines", folder)
        template = ChatTemplate(PLAIN, add_special=True)
    # openPangu's published template leaves the switch to the user's turn.
    if is_pangu(tokenizer) and "no_think" not in template.source:
        knows_auto = architecture.startswith("PanguEmbedded")
        template.words = {"off": NO_THINK, "auto": AUTO_THINK} if knows_auto else {"off": NO_THINK}
    elif template.found.kind == "word":
        template.words = {"off": f" {template.found.names[0]}"}
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

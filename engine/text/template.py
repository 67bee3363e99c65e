"""Chat messages to the text of a prompt: what a template is, and which one a checkpoint has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from loguru import logger

from fastslow.engine.params import Thinking
from fastslow.engine.text.message import Message
from fastslow.engine.text.settings import Settings, read_settings
from fastslow.engine.text.special import is_pangu
from fastslow.engine.text.tokenizer import Tokenizer


class ChatTemplate(Protocol):
    """Renders a chat."""

    @property
    def add_special(self) -> bool:
        """What `Tokenizer.encode` is to be given with the rendered text: False if the template
        writes its own bos."""

    @property
    def source(self) -> str:
        """The text of a template file, "" for built-in templates."""

    def render(
        self,
        messages: Sequence[Message],
        thinking: Thinking = "auto",
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt's text.

        `messages`: at least one; role system, user, assistant or tool, content a string.
        `thinking`: "off" and "on" ask the model for it in the model's own way, if it has one;
        "auto" leaves the model its default. `add_generation_prompt`: end where the assistant's
        answer begins. Raises ValueError for bad messages, with the template's own words if it is
        the template that refuses them.
        """


def load_template(folder: str | Path, tokenizer: Tokenizer, architecture: str = "") -> ChatTemplate:
    """The chat template of a checkpoint folder.

    `chat_template.jinja` wins, then tokenizer_config.json's `chat_template` (of a list of named
    ones, "default"), then openPangu's own if the tokenizer has its turn marks, then `User: ...`
    lines, with a warning. `architecture` is config.json's. Raises ValueError for a broken template.
    """
    from fastslow.engine.text.jinja import JinjaTemplate
    from fastslow.engine.text.pangu import PanguSwitch, PanguTemplate
    from fastslow.engine.text.plain import PlainTemplate

    folder = Path(folder)
    settings = read_settings(folder)
    template: ChatTemplate
    if (found := _find(folder, settings)) is not None:
        source, name = found
        template = JinjaTemplate(source, name, settings.bos_token, settings.eos_token)
    elif is_pangu(tokenizer):
        template = PanguTemplate()
    else:
        logger.warning("{} has no chat template: messages become plain 'User: ...' lines", folder)
        template = PlainTemplate()
    # openPangu's published template leaves the switch to whoever writes the user's turn.
    if is_pangu(tokenizer) and "no_think" not in template.source:
        return PanguSwitch(template, architecture)
    return template


def _find(folder: Path, settings: Settings) -> tuple[str, str] | None:
    """A template's text and the name of its place, for messages."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text("utf-8"), path.name
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
    name = "tokenizer_config.json: chat_template"
    found = settings.chat_template
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
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

"""What is said once about a model's chat template: what it cannot do, and what is done instead."""

from __future__ import annotations

import warnings

from loguru import logger

from fastslow.engine.text.templates import ChatTemplate
from fastslow.engine.text.thought import ThoughtTags
from fastslow.engine.text.tool_formats import GENERIC


class FastslowWarning(UserWarning):
    """A call does something else than was probably meant. It is in the log, too; an application's log is off."""


class ChatWarnings:
    """Says each thing once, for one model."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, warning: str) -> None:
        """A `FastslowWarning`."""
        if warning not in self._said:
            self._said.add(warning)
            logger.warning(warning)
            warnings.warn(warning, FastslowWarning, stacklevel=2)

    def of_thoughts(self) -> None:
        """Thoughts of earlier turns should stay, and cannot."""
        self._log(
            "the chat template writes earlier turns in a way that thoughts cannot be put back into: "
            "keep_thoughts changes no prompt"
        )

    def of_tools(self, template: ChatTemplate) -> None:
        """The template does not say how tools are called."""
        said = None
        if not template.reads_tools:
            said = "the chat template knows no tools: a text in front of the chat describes them"
        elif template.calls is GENERIC:
            said = "how the chat template writes calls of tools is not known"
        if said is not None:
            self._log(f"{said}; calls are read as {template.calls.begin}")

    def of_no_switch(
        self, mode: str, template: ChatTemplate, tags: ThoughtTags | None, opens: bool
    ) -> None:
        """Nothing in the template turns thinking off; `opens`: it opens a thought itself."""
        if opens or any(tag in template.source for tag in tags or () if tag):
            self.warn(
                f"mode {mode!r} asks for no thinking, but the chat template has no switch for it: a thought "
                "is closed as soon as it is opened"
            )
        elif "" not in self._said:
            self._said.add("")
            logger.info(
                "the chat template has no thinking switch: mode {!r} changes no prompt", mode
            )

    def _log(self, said: str) -> None:
        if said not in self._said:
            self._said.add(said)
            logger.info("{}", said)

"""Log lines of requests, one each."""

from __future__ import annotations

import re
from typing import Any

from loguru import logger

from fastslow.serve.observe.request_record import UNMATCHED, AnswerRecord, RequestRecord, tokens_of

QUIET = ("/health", "/ready", "/metrics")  # every few seconds: only with level debug
MOST_SHOWN = 2000  # characters of a text
MOST_REASON = 300
# Texts in a sentence as repr shows them, the last one maybe cut, but for fields' names; lists and objects to its end;
# what follows a colon, where other libraries have their say.
VALUE = re.compile(
    r"""(?<!\w)(?:(?<!field )(?<!mean )|(?!'[\w.]{1,64}'))(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|['"].*)|(?<==)[\[{].*"""
    r"""|(?<!Host)(?<!Origin): .*""",
    re.DOTALL,
)


class RequestLog:
    """Writes a line when a request is over. texts: whether prompts and answers are written, too."""

    def __init__(self, texts: bool = False) -> None:
        self._texts = texts

    def __call__(self, record: RequestRecord) -> None:
        fields = fields_of(record)
        if record.error is not None and record.status != 500:  # that one has a line of its own
            said = record.error.message
            fields["reason"] = (said if self._texts else VALUE.sub("...", said))[:MOST_REASON]
        if self._texts:
            outputs = [answer.output for answer in record.answers if answer.output is not None]
            choices = [choice for output in outputs for choice in output.choices]
            fields["prompts"] = [str(answer.prompt)[:MOST_SHOWN] for answer in record.answers]
            fields["texts"] = [choice.text[:MOST_SHOWN] for choice in choices]
        failed = record.status >= 500 or (record.status == 0 and not record.left)
        level = "DEBUG" if record.route in QUIET else "ERROR" if failed else "INFO"
        if level == "ERROR" and record.status == 503:  # whoever is at fault has a line of its own
            level = "WARNING"
        # the id is given: the request's own context is over
        logger.bind(request_id=record.id, **fields).log(level, "request")


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """Return what the log says of a request; no text of it."""
    fields: dict[str, Any] = {
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "seconds": round(record.seconds, 4),
        "key": record.caller.name,
        "client": record.client,
    }
    if record.route == UNMATCHED:
        fields["path"] = record.path[:200]
    if record.left:
        fields["client_left"] = True
    if record.answers:
        fields |= _answers(record.answers, record.started)
    return fields


def _answers(answers: list[AnswerRecord], started: float) -> dict[str, Any]:
    tokens = [tokens_of(answer) for answer in answers]
    choices = [choice for one in answers if one.output is not None for choice in one.output.choices]
    fields: dict[str, Any] = {
        "answers": [answer.id for answer in answers],
        "prompt_tokens": sum(prompt for prompt, _ in tokens),
        "tokens": sum(made for _, made in tokens),
    }
    first = [answer.first for answer in answers if answer.first is not None]
    if first:
        fields["first_token_seconds"] = round(min(first) - started, 4)
    if choices:
        metrics = [choice.metrics for choice in choices]
        steps = sum(one.steps for one in metrics)
        fields |= {
            "mode": metrics[0].mode,
            "drafter": metrics[0].drafter,
            "cached_tokens": sum(one.cached_tokens for one in metrics),
            "drafted": sum(one.drafted for one in metrics),
            "accepted": sum(one.accepted for one in metrics),
            "tokens_per_step": round(sum(one.tokens for one in metrics) / max(1, steps), 2),
            "finish_reasons": [choice.finish_reason for choice in choices],
        }
    if failed := [answer.failed for answer in answers if answer.failed is not None]:
        fields["failed"] = failed[0]
    return fields

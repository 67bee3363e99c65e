"""/v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import Field, StrictBool, StrictInt

from fastslow.engine.params import MOST, shown
from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.config import ServerSettings
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.limits import Who
from fastslow.serve.api.mode_fields import optional
from fastslow.serve.http.answer import STREAMED
from fastslow.serve.http.body import json_router
from fastslow.serve.http.route import answer, metrics_of
from fastslow.serve.openai.chat_body import OpenAIFields
from fastslow.serve.openai.chunks import FINISH, ChunkedAnswer, Fields, usage_of
from fastslow.serve.openai.logprobs import Places, TextLogprobsWriter, tokens_in

router = json_router()
MOST_PROMPTS = 1024  # that are looked at; the settings allow fewer
TokenId = Annotated[StrictInt, Field(ge=0, le=MOST)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Prompts = (
    str
    | Annotated[list[str], Field(fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MOST_PROMPTS)]
)


class CompletionRequest(OpenAIFields):
    """A text to continue, token ids, or several of these."""

    prompt: Prompts
    logprobs: Annotated[StrictInt, Field(ge=0)] | None = None
    echo: StrictBool | None = optional("begin with the prompt")
    best_of: Annotated[StrictInt, Field(ge=1)] | None = optional(
        "at most n: this server leaves none of the answers out"
    )
    allow_special: StrictBool | None = optional(
        "special tokens that the prompt spells are marks, not text"
    )

    def sampling(self) -> dict[str, Any]:
        if self.best_of is not None and self.best_of > (self.n or 1):
            raise ValueError(f"best_of={self.best_of} must be at most n={self.n or 1}")
        if not self.echo or self.logprobs is None:
            return super().sampling()
        if self.stream:
            raise ValueError("echo with logprobs must be without stream")
        return super().sampling() | {"prompt_logprobs": self.logprobs}


def as_prompts(prompt: Prompts, settings: ServerSettings) -> list[str | list[int]]:
    """Each prompt, as `LLM` takes it."""
    single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    prompts: list[Any] = [prompt] if single else list(prompt)
    if not prompts or not all(prompts):
        raise ValueError("prompt is empty: give at least one character or token")
    if len(prompts) > settings.prompts:
        raise ValueError(f"prompt has {len(prompts)} entries; at most {settings.prompts} are taken")
    size = sum(map(len, prompts))
    if size > settings.prompt_characters:
        limit = f"at most {settings.prompt_characters} are taken"
        raise ValueError(f"prompt={shown(prompt)} has {size} characters or tokens; {limit}")
    return prompts


class CompletionAnswer(ChunkedAnswer[CompletionRequest]):
    """Texts with their ends; streamed, chunks of text, for each answer its end, at last the usage."""

    prefix, kind, empty = "cmpl-", "text_completion", {"text": ""}

    def requests(self) -> list[GenerateRequest]:
        body, settings = self.body, self.settings
        prompts = as_prompts(body.prompt, settings)
        body.check(len(prompts), settings)
        several = len(prompts) > 1
        return [
            self.request(
                prompt,
                id=f"{self.id}-{place}" if several else self.id,
                prompts=len(prompts),
                allow_special=body.allow_special is True,
                sampling_defaults={**settings.sampling, "max_tokens": settings.completion_tokens},
            )
            for place, prompt in enumerate(prompts)
        ]

    async def prepare(self, requests: Sequence[GenerateRequest]) -> None:
        await super().prepare(requests)
        prompts = [request.prompt for request in requests]
        self._echoes = [""] * len(prompts)  # what stands before the answers to each prompt
        if self.body.echo:
            self._echoes = [
                p if isinstance(p, str) else await self.engine.detokenize(list(p))  # type: ignore[arg-type]
                for p in prompts
            ]
        self._writers: dict[int, TextLogprobsWriter] = {}  # of log-probabilities, by answer

    async def whole(self, outputs: Sequence[Output]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for output, echo in zip(outputs, self._echoes):
            await self.tokens.learn(tokens_in(output.prompt_logprobs, output.prompt_token_ids))
            for one in output.choices:
                await self.tokens.learn(tokens_in(one.logprobs, one.token_ids))
                choices.append(self._choice(len(choices), output, one, echo))
                if len(outputs) * self._n > 1:
                    choices[-1]["metrics"] = metrics_of(one)
        made = {**self._fields, "choices": choices, "usage": usage_of(outputs)}
        return made | {"metrics": metrics_of(outputs[0].choices[0])}

    def traced(self, traces: list[Any]) -> Any:
        return traces

    def opening(self) -> list[tuple[int, Fields]]:
        return [
            (place * self._n + i, {"text": echo})
            for place, echo in enumerate(self._echoes)
            for i in range(self._n)
            if echo
        ]

    def _choice(self, index: int, output: Output, one: Completion, echo: str) -> dict[str, Any]:
        logprobs = None
        if one.logprobs is not None:
            ids, places = one.token_ids, [*one.logprobs]
            if echo:
                ids = [*output.prompt_token_ids, *ids]
                places = [*(output.prompt_logprobs or []), *places]  # type: ignore[list-item]
            logprobs = self._logprobs(index, ids, places)
        made: dict[str, Any] = {
            "index": index,
            "text": echo + one.text,
            "logprobs": logprobs,
            "finish_reason": FINISH[one.finish_reason],
            "stop_reason": one.stop_reason,
        }
        if one.reasoning:
            made["reasoning"] = one.reasoning
        return made

    def _logprobs(self, index: int, ids: Sequence[int], places: Places) -> dict[str, Any]:
        if index not in self._writers:
            self._writers[index] = TextLogprobsWriter(self.tokens, self.body.logprobs or 0)
        return self._writers[index].write(ids, places)

    def deltas(self, index: int, piece: Piece) -> list[Fields]:
        places = None if self.body.logprobs is None else piece.logprobs
        if not (piece.text or piece.reasoning or places or self._sources):
            return []
        fields: dict[str, Any] = {"text": piece.text}
        if piece.reasoning:
            fields["reasoning"] = piece.reasoning
        if self._sources:
            fields |= {"token_ids": piece.token_ids, "sources": piece.sources}
        if places is not None:
            fields["logprobs"] = self._logprobs(index, piece.token_ids, places)
        return [fields]


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request, who: Who) -> Response:
    """Continue a text, or several."""
    return await answer(CompletionAnswer, body, request, who)

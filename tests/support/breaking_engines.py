"""Engines that end in the middle of answers."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from fake_engine import FakeEngine, metrics

from fastslow.output import Completion, Output, Piece
from fastslow.serve.api.engine import Engine, NotReady, WrappedEngine
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.local import LocalEngine


@dataclass
class Token:
    """A token of a scripted answer, and the texts that become certain with it."""

    id: int
    reasoning: str = ""
    text: str = ""
    source: str = "target"
    stopped: int | None = None  # as the piece that ends with it says


@dataclass
class Break:
    """A try: the sizes of its pieces, in tokens, after how many of them it ends, and how."""

    sizes: Sequence[int] = (1,)
    after: int | None = None  # None: it does not end before the answer does
    error: Exception = field(default_factory=lambda: NotReady("it is gone", "a"))


class ScriptedReplicas(FakeEngine):
    """Answers with the same tokens in every try, which continue after those that were answered.

    Args:
        answer: the tokens of each of n answers.
        breaks: one for each try; later tries are whole.
        seconds: that each try takes before anything comes.
        there: whether a replica runs.
    """

    def __init__(
        self, answer: Sequence[Sequence[Token]], breaks: Sequence[Break] = (), seconds: float = 0.0, there: bool = True
    ) -> None:
        super().__init__()
        self.seconds, self.there = seconds, there
        self.answer = answer
        self.breaks = list(breaks)
        self.left = 0  # streams that were left or are over

    @property
    def ready(self) -> bool:
        return self.there

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.asked.append(ask)
        broken = self.breaks.pop(0) if self.breaks else Break()
        await asyncio.sleep(self.seconds)
        try:
            if broken.after == 0:
                raise broken.error
            for count, piece in enumerate(self._pieces(ask, broken.sizes), 1):
                yield piece
                if count == broken.after:
                    raise broken.error
            if broken.after is not None:
                raise broken.error
            yield Piece(output=self.output(ask))
        finally:
            self.left += 1

    def output(self, ask: GenerateRequest) -> Output:
        choices = []
        for index, tokens in enumerate(self.answer):
            known, whole = self._known(ask, index), piece_of(tokens, index)
            figures = metrics(tokens=len(tokens))
            made = Completion(whole.text, whole.reasoning, whole.token_ids, "stop", None, None, figures)
            choices.append(replace(made, sources=["answered"] * known + whole.sources[known:]))
        return Output("a prompt", [1, 2, 3], choices)

    def _pieces(self, ask: GenerateRequest, sizes: Sequence[int]) -> list[Piece]:
        """Answers take turns; each begins with all that was answered."""
        found = []
        places = [0] * len(self.answer)
        turn = 0
        while any(place < len(tokens) for place, tokens in zip(places, self.answer)):
            index = turn % len(self.answer)
            size = sizes[turn % len(sizes)] + (0 if places[index] else self._known(ask, index))
            turn += 1
            part = self.answer[index][places[index] : places[index] + size]
            places[index] += len(part)
            if part:
                found.append(piece_of(part, index))
        return found

    def _known(self, ask: GenerateRequest, index: int) -> int:
        answered = ask.options.answered
        if answered is None or index >= len(answered.tokens):
            return 0
        known = answered.tokens[index]
        assert known == [token.id for token in self.answer[index]][: len(known)]
        return len(known)


def piece_of(part: Sequence[Token], index: int) -> Piece:
    return Piece(
        "".join(token.text for token in part), "".join(token.reasoning for token in part),
        [token.id for token in part], logprobs=[{token.id: -0.5} for token in part], index=index,
        sources=[token.source for token in part], stopped=part[-1].stopped,
    )  # fmt: skip


async def taken(engine: Engine, ask: GenerateRequest) -> tuple[list[Piece], Output]:
    """The pieces of an answer, and what it is as a whole."""
    *pieces, last = [piece async for piece in engine.stream(ask)]
    assert last.output is not None
    return pieces, last.output


class Replicas(WrappedEngine):
    """Two engines that are alike. The first tries end after some pieces.

    Args:
        engines: by name.
        after: pieces after which a try ends; later tries do not end.
    """

    def __init__(self, engines: dict[str, LocalEngine], after: Sequence[int] = ()) -> None:
        super().__init__(engines["a"])
        self.engines = engines
        self.after = list(after)
        self.names: list[str] = []  # of those that were asked

    async def stream(self, ask: GenerateRequest) -> AsyncGenerator[Piece, None]:
        name = next((name for name in self.engines if name not in ask.avoid), "a")
        self.names.append(name)
        self.engine = self.engines[name]  # which calls about the request go to
        after, count = self.after.pop(0) if self.after else None, 0
        try:
            if after == 0:
                raise NotReady("the replica ended")
            async with aclosing(self.engines[name].stream(ask)) as pieces:
                async for piece in pieces:
                    yield piece
                    count += 1
                    if count == after:
                        raise NotReady("the replica ended")
        except NotReady as error:
            error.replica = name
            raise

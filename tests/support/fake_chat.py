"""The real server in front of an engine without a model: long answers, slow ones, errors, hostile texts.

What a chat gets is said by the first word of its last message, see `script`.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from fake_engine import FakeEngine, output
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from fastslow.engine.core.spec_decode_stats import DraftCounts
from fastslow.engine.sampling.stop import Reason
from fastslow.output import Piece
from fastslow.serve.api.engine import Busy, ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.app import create_app

MODES = {
    "fast": {"description": "a quarter of the expert groups, no thinking: low latency"},
    "deep": {"description": "all expert groups, thinking on"},
    "auto": {"description": "fast or deep, by what is asked; each answer says which, and why"},
}
SOURCES = ["target", *["suffix"] * 2, "target", *["head"] * 3, *["target"] * 2, "prediction"]
THOUGHT = """The list is sorted, so halving works. Each comparison rules out half of what is left.
For a million entries that is about twenty comparisons, since 2 to the power of 20 is 1,048,576.
An empty list needs care: the loop should not run at all.
"""
ANSWER = """**Binary search** needs about *20 comparisons* for a million sorted entries: every one rules out half of what is left.

```python
def find(values: list[int], wanted: int) -> int:
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low
```

What to keep in mind:

1. The list must be sorted, else the answer means nothing.
2. `low` is where the value stands, or where it would have to be put in:
   - an empty list gives 0,
   - a value above all others gives `len(values)`.
3. Python has it ready-made as `bisect.bisect_left`.

| entries | comparisons |
|--------:|------------:|
| 1,000 | 10 |
| 1,000,000 | 20 |
"""
HOSTILE = """<img src=x onerror="window.hurt=1"><script>window.hurt=2</script>

[click me](javascript:window.hurt=3) ![x](http://192.0.2.1/a.png) <a href="javascript:hurt">a</a>

```"><script>window.hurt=4</script>
</code></pre><script>window.hurt=5</script>
```

`<svg onload=window.hurt=6>` **<b onmouseover=window.hurt=7>bold</b>**

| <iframe src="http://192.0.2.1"></iframe> | b |
|---|---|
| </td><script>window.hurt=8</script> | __proto__ |
"""
PROSE = """the scheduler takes what waits, runs one step for all requests, and gives each its tokens;
a draft that the model would have said itself costs one row and saves one step."""
LINES = "\n".join(f"x_{i} = compute({i}, x_{i - 1})" for i in range(1, 600))


def prose(tokens: int) -> str:
    """A text of this many words, in paragraphs, with a heading, a list or some code now and then."""
    parts: list[str] = []
    for i, word in enumerate(islice(cycle(PROSE.split()), tokens)):
        match i % 240:
            case 0:
                parts.append(f"\n\n## Part {i // 240 + 1}\n\n{word}")
            case 80 | 100:
                parts.append(f"\n- **{word}**")
            case 120:
                parts.append(f"\n\n```python\n{word}")
            case 160:
                parts.append(f"\n```\n\n{word}")
            case _:
                parts.append((" \n" if i % 12 == 0 and 120 < i % 240 < 160 else " ") + word)
    return "".join(parts).strip()


@dataclass
class Answer:
    """The answer that a chat gets."""

    text: str
    thought: str = ""
    rate: float = 400.0  # tokens a second
    breaks: bool = False  # it ends in the middle
    stopped: bool = False
    thinking_stopped: bool = False


def script(message: str, mode: str) -> Answer:
    """The answer that the first word of a message asks for."""
    word, *rest = message.split()
    thought = "" if mode == "fast" else THOUGHT
    match word:
        case "long":
            return Answer(prose(int(rest[0])), rate=float(rest[1]))
        case "wall":
            return Answer(prose(int(rest[0])).replace("\n", " "), rate=float(rest[1]))
        case "code":
            return Answer(f"```python\n{LINES}\n```\n", rate=2000)
        case "slow":
            return Answer(prose(400), rate=20)
        case "think":
            return Answer("So it is.", thought=prose(600), rate=40)
        case "hostile":
            return Answer(HOSTILE, thought=HOSTILE)
        case "off" | "error":
            return Answer(prose(60), breaks=word == "error")
        case "echo":
            return Answer(" ".join(rest), thought=thought)
    return Answer(ANSWER, thought=thought)


class ChatEngine(FakeEngine):
    """An engine of scripted answers, and its figures, which change with each call unless they are given."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.given: dict[str, Any] = {}
        self.calls = 0  # of `stats`
        self.busy = 0  # this many more chats are refused
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []  # of all chats, as they came
        self._answers: dict[str, Answer] = {}
        self._tokens: list[str] = []

    @property
    def card(self) -> ModelCard:
        return ModelCard("fake-moge", 0, 65536, MODES, "groups", 4, thinks=True, has_head=True)

    async def stats(self) -> dict[str, Any]:
        self.calls += not self.given
        return self.given or figures_at(self.calls)

    async def cancel(self, id: str) -> bool:
        self._answers[id].stopped = True
        return True

    async def stop_thinking(self, id: str) -> bool:
        self._answers[id].thinking_stopped = True
        return True

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        return [(self._tokens[token].encode(), True) for token in tokens]

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """Yield what is due every few milliseconds, a piece for each step."""
        if self.busy:
            self.busy -= 1
            raise Busy("the queue of 64 requests is full", 2.0)
        asked: Any = request.options.mode
        mode, prompt = asked if isinstance(asked, str) else asked["base"], request.prompt
        message = str(prompt[-1]["content"])  # type: ignore[index]
        if message.startswith("wrong"):
            raise ValueError("temperature=1000 must be at most 2")
        answer = self._answers[request.id] = script(message, mode)
        thought, text = (re.findall(r"\s*\S+|\s+$", part) for part in (answer.thought, answer.text))
        tokens = [(True, token) for token in thought] + [(False, token) for token in text]
        sources, sent, start = cycle(SOURCES), 0, time.monotonic()
        ended = "model" if thought else None
        while sent < len(tokens) and not answer.stopped:
            if answer.thinking_stopped and tokens[sent][0]:
                tokens, ended = tokens[:sent] + [(False, token) for token in text], "caller"
            if answer.breaks and sent > 30:
                raise NotReady("the engine ended in the middle of the request")
            due = min(len(tokens), int((time.monotonic() - start) * answer.rate) + 1)
            while sent < due:
                thinks, step, names = tokens[sent][0], [], [""]
                while sent < due and tokens[sent][0] == thinks and names[-1] != "target":
                    step.append(tokens[sent][1])
                    names.append(next(sources))
                    sent += 1
                ids = range(len(self._tokens), len(self._tokens) + len(step))
                self._tokens += step
                said = ("", "".join(step)) if thinks else ("".join(step), "")
                yield Piece(*said, list(ids), sources=names[1:])
            await asyncio.sleep(max(0.004, 1 / answer.rate))
        count = sum(thinks for thinks, _ in tokens[:sent])
        figures: dict[str, Any] = {"mode": mode, "thinking_tokens": count, "thinking_ended": ended}
        if mode == "auto":
            chosen = "deep" if thought else "fast"
            figures |= {"mode": chosen, "decision": "the question asks for a proof"}
        figures |= {"ttft": 0.042, "tpot": 1 / answer.rate, "tokens": sent, "steps": sent * 2 // 5}
        figures |= {"prompt_tokens": 120, "cached_tokens": 96}
        figures["acceptance"] = [0.84, 0.61, 0.43, 0.2]
        drafts = {"suffix": DraftCounts(96, 44), "head": DraftCounts(61, 43)}
        reason: Reason = "cancelled" if answer.stopped else "stop"
        yield Piece(output=output("", reason, by_drafter=drafts, **figures))


def figures_at(call: int) -> dict[str, Any]:
    """Those of a server with some load, at the `call`-th look."""

    def grown(**each: float) -> dict[str, Any]:
        return {name: figure * call for name, figure in each.items()}

    one = grown(requests=1, tokens=30, steps=12, drafted=40, accepted=18)
    one |= grown(prompt_tokens=90, cached_tokens=61)
    seconds = {"fast": 0.04, "deep": 0.31, "auto": 0.18}
    firsts = {name: grown(count=1, seconds=each) for name, each in seconds.items()}
    modes = {name: one | {"first_token": first} for name, first in firsts.items()}
    suffix, head = grown(offered=400, accepted=184), grown(offered=250, accepted=177)
    return {
        **grown(steps=300, tokens=900, prompt_tokens=4000, cached_tokens=2600), "running": 2 + call % 7,
        "waiting": call % 3, "pages": 1024, "pages_used": 320, "pages_cached": 200, "pages_free": 504,
        "ended": grown(stop=44, length=4, cancelled=2), "drafters": {"suffix": suffix, "head": head},
        "modes": modes,
    }  # fmt: skip


class FakeChat:
    """The application. It notes the bodies of chats, may want a key, and cuts off an answer to "off"."""

    def __init__(self, engine: ChatEngine) -> None:
        self._engine, self._app = engine, create_app(engine)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine, body, sent = self._engine, b"", 0
        key = dict(scope["headers"]).get(b"authorization", b"").decode()
        if engine.key and scope["path"].startswith("/v1/") and key != f"Bearer {engine.key}":
            await JSONResponse({"error": {"message": "no API key"}}, 401)(scope, receive, send)
            return

        async def noted() -> Message:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if body and not message.get("more_body"):
                engine.bodies.append(json.loads(body))
                body = b""
            return message

        async def cut(message: Message) -> None:
            nonlocal sent
            sent += 1
            if sent > 10 and engine.bodies[-1]["messages"][-1]["content"] == "off":
                raise ConnectionError
            await send(message)

        await self._app(scope, noted, cut)

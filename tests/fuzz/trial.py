"""A case: a damaged folder is loaded and used as a caller would, and what happened is judged."""

import traceback
from pathlib import Path
from typing import Any

from bases import Kind

from fastslow import LLM, GenerationError, SamplingParams, Speculation

NOT_FINITE = "the model's logits are not finite numbers"
LONGEST = 400  # characters of a refusal
TEXT = "The quick <|im_end|>fox 你好, [unused10] </s> jumps."
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
IDS = [5, 6, 7, 8, 9, 5, 6, 7, 8]
USUAL: tuple[dict[str, Any], ...] = ({"drafter": "auto", "nodes": 3}, {"drafter": "suffix|ngram"})


class Finding(Exception):
    """A fault that must not happen; its text says what happened."""


class Trial:
    """Uses one folder; keeps the sentences with which something was refused, and counts answers."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._folder = folder
        self._kind = kind
        self.refused: list[str] = []
        self.answers = 0

    def run(self) -> None:
        """Load, answer, close. Raises `Finding`."""
        options: dict[str, Any] = {k: self._path(v) for k, v in self._kind.options}
        target = self._folder / self._kind.target
        llm = self._tried(LLM, target, progress=False, kv_memory="64MiB", **options)
        if llm is None:  # most of all contexts are too long for this memory
            llm = self._tried(LLM, target, progress=False, max_model_len=64, **options)
        if llm is None:
            return
        try:
            for prompt in ([token % llm.model.config.vocab_size for token in IDS], TEXT, CHAT):
                self._answers(llm, prompt)
        finally:
            llm.close()

    def _answers(self, llm: LLM, prompt: Any) -> None:
        greedy = SamplingParams(max_tokens=6, ignore_eos=True)
        plain = self._tokens(llm, prompt, greedy, "off")
        if plain is None:
            return
        own = [{k: self._path(v) for k, v in fields.items()} for fields in self._kind.drafters]
        for fields in (*USUAL, *own):
            found = self._tokens(llm, prompt, greedy, fields)
            if found is not None and found != plain:
                raise Finding(f"wrong answer: {fields} gives {found}, plain decoding {plain}")
        drawn = SamplingParams(max_tokens=4, temperature=1.0, top_p=0.9, seed=1, logprobs=2)
        self._tokens(llm, prompt, drawn, own[0] if own else "auto")
        self._tokens(llm, prompt, SamplingParams(max_tokens=3), "auto", mode="auto")

    def _tokens(
        self, llm: LLM, prompt: Any, sampling: SamplingParams, speculation: Any, **options: Any
    ) -> list[int] | None:
        if isinstance(speculation, dict):
            speculation = self._tried(Speculation, **speculation)
        output = self._tried(llm.generate, prompt, sampling, speculation=speculation, **options)
        self.answers += output is not None
        return None if output is None else list(output.choices[0].token_ids)

    def _tried(self, what: Any, *arguments: Any, **options: Any) -> Any:
        """Return what a call gives; None where it was refused as it should be."""
        try:
            return what(*arguments, **options)
        except Exception as error:
            said, where = str(error), "".join(traceback.format_exception(error)[-12:])
            if isinstance(error, GenerationError) and said.endswith(NOT_FINITE):
                self.refused.append(said)  # numbers of a checkpoint are looked at when they run
            elif not isinstance(error, ValueError) or isinstance(error, UnicodeError):
                raise Finding(f"uncaught {type(error).__name__}: {error}\n{where}") from error
            elif len(said) > LONGEST or "\n" in said:
                raise Finding(f"no sentence: {said[:600]!r}\n{where}") from error
            else:
                self.refused.append(said)
        except BaseException as error:  # a library's panic is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise Finding(f"uncaught {type(error).__name__}: {error}") from error
        return None

    def _path(self, value: Any) -> Any:
        at = isinstance(value, str) and value.startswith("@")
        return str(self._folder / value[1:]) if at else value

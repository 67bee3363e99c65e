"""`LLM`: a model that is loaded and ready to answer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, SupportsIndex, cast

from fastslow.draft.router import DrafterRouter
from fastslow.draft.suffix.sources import AnswerMemory
from fastslow.drafters import Closed, DrafterFactory
from fastslow.engine.backends.cpu.compiled.kernel_cache import prepare
from fastslow.engine.backends.cpu.store import finish_writing
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.stats import EngineLoad, EngineStats
from fastslow.engine.core.worker import Worker
from fastslow.engine.host.machine import give_back
from fastslow.engine.host.progress import bar
from fastslow.engine.model.base import Model
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.parallel.open import ends_ranks_if_it_fails, open_model
from fastslow.engine.parallel.torchrun import join
from fastslow.engine.text.tool_formats import ToolCalls
from fastslow.engine_args import EngineArgs
from fastslow.keywords import GenerateCall, takes_fields, takes_lists, takes_options
from fastslow.models.hub.about import propose_drafts
from fastslow.models.locate import called, find_tokenizer, resolve_model
from fastslow.output import Output
from fastslow.policies.modes import load_modes
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.cost_curve import FIRST_PATIENCE, step_seconds
from fastslow.policies.speculation.step_cost import StepCostCurve
from fastslow.request.builder import RequestBuilder
from fastslow.request.choice import OutputBuilder
from fastslow.request.group import GroupParts, LoopWakeups
from fastslow.request.handle import (
    PieceStream,
    RequestHandle,
    answer_all,
    groups_of,
    single_prompt,
)
from fastslow.request.input_processor import InputProcessor
from fastslow.request.mode_finder import ModeFinder
from fastslow.request.options import (
    Conversation,
    GenerateOptions,
    ListOf,
    ModeLike,
    Prompt,
    as_messages,
    as_prompts,
)
from fastslow.request.pin import PinnedPrefix, PrefixPinner

TOKENISERS = 2  # threads that tokenise what is submitted


class LLM:
    """A model ready to answer, from any number of threads.

    It answers in the process that made it: in one that was forked from that every call raises
    RuntimeError, and a new LLM is made there. An LLM that nobody holds any more is closed.

    `EngineArgs` says what each argument means.
    """

    @takes_fields(EngineArgs)
    @ends_ranks_if_it_fails
    def __init__(self, args: EngineArgs) -> None:
        if args.parallel is not None:
            join()
        memory = AnswerMemory(common=args.remember is True) if args.remember else None
        prepare(args.device)
        folder = resolve_model(args.model, args.progress)
        self._name = str(args.model)
        names = ("dtype", "quantization", "device", "kv_dtype", "progress")
        load = {name: getattr(args, name) for name in names}
        self._ranks = ExitStack()
        with called(args.model, folder):
            self.tokenizer = find_tokenizer(folder)  # refused before any weight is packed
            self.model = open_model(folder, args.parallel, self._ranks, **load)

            units = RoutedUnits.of(self.model.config)
            self._kv, context = args.own_pages(self.model)
            modes, router = args.modes, args.router(folder)
            if modes is None and isinstance(args.auto, str | Path):
                modes = args.auto  # the presets that it chooses between
            self._inputs = inputs = InputProcessor(
                folder, self.model.config, self.tokenizer, context, args.thinking_tags
            )
            self.modes = load_modes(folder, units, modes, self.thinks)
        if context < (whole := args.context(self.model.config.context)):
            inputs.said.warn(
                f"one request of {whole} tokens has no room: texts have at most {context}"
                " (max_model_len, kv_memory)"
            )

        pages = partial(args.pages, context=context)
        identity = f"{folder.resolve()} {args.quantization}{getattr(self.model, 'parallel', '')}"
        identity += f" {args.kv_dtype}" if args.kv_dtype != "auto" else ""
        controller = SpeculationController(partial(_curve_of, weakref.ref(self.model), identity))
        self._identity = identity
        self._step_seconds = controller.seconds
        self._drafters = DrafterFactory(
            folder, self.model, self._kv, self.tokenizer, load, pages, memory, controller
        )
        if args.speculation in (None, "auto") and not self._drafters.has_head:
            propose_drafts(str(args.model))
        drafter = DrafterRouter(self._drafters.made, controller.drafted)
        self._core = EngineCore(
            self.model, self._kv, drafter, args.prompt_rows, args.max_running, controller
        )

        scheduler = self._core.scheduler
        finder = ModeFinder(self.modes, router, units, self.tokenizer, lambda: scheduler.busy)
        builder = RequestBuilder(
            inputs, self._core, self._drafters, controller, finder, args.speculation
        )
        self.max_running, self.max_model_len = args.max_running, context
        wakeups = LoopWakeups()
        self._worker = Worker(self._core, self._drafters.clear, wakeups)
        between = self._drafters.between_steps = self._worker.between_steps
        outputs = OutputBuilder(inputs)
        self._tokenising = ThreadPoolExecutor(TOKENISERS, "fastslow-tokenise")
        self._parts = GroupParts(builder, outputs, self._worker, wakeups, self._tokenising)
        self._pinner = PrefixPinner(self._parts, self._kv, context, between)
        # groups that run hold it, too: a handle of a dropped LLM gets its answer
        weakref.finalize(outputs, _let_go, self._worker, self._drafters).atexit = False

    @takes_lists(GenerateCall)
    def generate(
        self, prompts: Prompt | ListOf[Prompt], options: dict[str, Any]
    ) -> Output | list[Output]:
        """Answer one prompt or many. For a list of prompts every option may be a list with a value for each.

        Args:
            prompts: text (without a template), token ids, chat messages (put through the template), or
                a list of such prompts.

        Returns:
            One `Output` for one prompt; for a list, a list in the same order.

        Raises:
            ValueError: one sentence about the first thing that does not fit; nothing has run then.
            GenerationError: the engine failed on a request; it holds all outputs.
            RuntimeError: this LLM is closed, as all calls raise.
        """
        progress = options.pop("progress", True)
        groups, single = groups_of(prompts, options, self._parts)
        draw = progress and not single
        drawn = (lambda over: bar(over, "Answering", len(groups))) if draw else iter
        outputs = answer_all(groups, drawn)
        return outputs[0] if single else outputs

    @takes_lists(GenerateCall)
    def chat(
        self, messages: Conversation | ListOf[Conversation], options: dict[str, Any]
    ) -> Output | list[Output]:
        """Answer a conversation, or one user message given as text, or a list of such; see `generate`."""
        generate: Callable[..., Output | list[Output]] = self.generate
        return generate(as_prompts(messages), **options)

    @takes_options(GenerateOptions)
    def stream(self, prompt: Prompt, options: GenerateOptions) -> PieceStream:
        """Stream one prompt's answer in pieces, as it is made; the last piece carries the `output`. Pieces of n
        answers mix; `Piece.index` tells them apart.

        All is checked before this returns, and the first `next` starts the request. Leaving the loop early, or
        `close`, ends it; the stream's `output` then has the answer so far.

        Raises:
            ValueError: as `generate`; also for a list of prompts.
            GenerationError: while iterating, if the engine failed on the request.
        """
        handle = RequestHandle.of("stream", prompt, options, self._parts)
        handle._group.prepare()
        return iter(handle)

    @takes_options(GenerateOptions)
    def stream_chat(self, messages: Conversation, options: GenerateOptions) -> PieceStream:
        """`stream` for a conversation, or one user message given as text."""
        return self.stream(as_messages(messages), **options.given())

    @takes_options(GenerateOptions)
    def submit(self, prompt: Prompt, options: GenerateOptions) -> RequestHandle:
        """Start to answer one prompt, and return at once: the way to ask from an event loop.

        The prompt is tokenised in another thread, so that a long one holds up neither the caller nor the
        engine. `fastslow.as_completed` goes through many handles.

        Raises:
            ValueError: at once for what is seen without a tokenizer: types, ranges, unknown modes and
                keywords, a prompt much too long. For all else `RequestHandle.result` raises it.
        """
        return RequestHandle.of("submit", prompt, options, self._parts).start()

    def stats(self) -> EngineStats:
        """Return what the engine does and has done: its queue, pages, prefix hits and drafts. It never waits."""
        return self._core.stats()

    def current_load(self) -> EngineLoad:
        """Return the load now by mode, and the speed of the last steps. It never waits, like `stats`."""
        return self._core.load()

    def pin(
        self,
        prompt: Prompt,
        *,
        mode: ModeLike | None = None,
        memory_key: str | None = None,
        every_key: bool = False,
        allow_special: bool = False,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> PinnedPrefix:
        """Read a prefix now, such as a system prompt, and keep it in the prefix cache: requests of the
        same mode and memory_key that begin with it read only the rest. Of messages it pins what every chat
        shares that continues them. At most half of all pages may be pinned. every_key=True: requests of
        every memory key find it, but not what others wrote after it.

        Raises:
            ValueError: as `generate`; also where the mode chooses, or it has no full page, or too many.
            GenerationError: the engine failed to read it.
            RuntimeError: texts were forgotten meanwhile.
        """
        options = GenerateOptions(
            speculation="off",
            mode=mode,
            memory_key=memory_key,
            allow_special=allow_special,
            chat_template_kwargs=chat_template_kwargs,
        )
        return self._pinner.pin(single_prompt("pin", prompt, self._inputs), options, every_key)

    def forget_prompts(self) -> None:
        """Forget the texts of all calls so far: the prefix cache, answers that are kept to draft from,
        and what drafters know of texts that are over. A corpus stays, and so does the share of drafts
        that was accepted. Calls that run or wait continue, but nothing of them is shared later."""
        drafters, core = self._drafters, self._core

        def forget() -> None:
            drafters.forget()
            core.forget_prompts()

        self._worker.between_steps(forget)

    def measure_steps(self) -> None:
        """Measure now how long steps take, 2 s for each mode at most; else the first calls of some starts do."""
        for groups in {mode.routed for mode in self.modes.values() if not mode.auto}:
            whole = partial(step_seconds, self.model, groups, self._identity)
            self._worker.ask(whole)  # kept in a file, which the next one reads
            self._worker.ask(partial(self._step_seconds, groups, 1)).result()

    @property
    def tool_calls(self) -> ToolCalls:
        """The form in which the model writes tool calls."""
        return self._inputs.tool_calls

    @property
    def has_head(self) -> bool:
        """True where the model has a trained draft head."""
        return self._drafters.has_head

    @property
    def thinks(self) -> bool:
        """True where the model has thinking tags."""
        return self._inputs.tags is not None

    @takes_options(GenerateOptions)
    def tokenize(self, prompt: Prompt, options: GenerateOptions) -> list[int]:
        """The token ids that a call with this prompt and these options would read; nothing runs."""
        builder, prompt = self._parts.builder, single_prompt("tokenize", prompt, self._inputs)
        builder.check(prompt, options)
        options, _ = builder.with_tools(options)
        mode = builder.modes.find(options.mode, prompt).mode
        return builder.inputs.encode(prompt, mode, options).tokens

    def detokenize(self, tokens: Sequence[SupportsIndex]) -> str:
        """The text of token ids, with that of special tokens."""
        return self._inputs.text(tokens)

    def close(self) -> None:
        """Cancel what runs, end the engine's thread, free the model. Closing twice is fine. At a first start it waits
        until the packed weights, which are memory till then, are on disk."""
        self._worker.close()
        self._ranks.close()
        if not isinstance(self.model, Closed):
            self._tokenising.shutdown(wait=False)
            device = self.model.device
            self.model = self._kv = self._core = self._inputs = cast(Any, Closed())
            self._pinner = self._parts = cast(Any, Closed())
            self._drafters.clear()
            finish_writing()
            give_back(device)

    def __repr__(self) -> str:
        if isinstance(model := self.model, Closed):
            return f"LLM({self._name!r}, closed)"
        return f"LLM({self._name!r}, {model.config.architecture}, {model.dtype}, {model.device})"

    def __enter__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an LLM cannot be pickled; make one in each process")

    def __exit__(self, *_: object) -> None:
        self.close()


def _let_go(worker: Worker, drafters: DrafterFactory) -> None:
    """An LLM was dropped. This may be any thread, in the middle of anything: nothing is waited for."""
    worker.end()
    if worker.ended:  # else it lets go of the drafters when it ends
        drafters.clear()


def _curve_of(model: weakref.ref[Model], identity: str, groups: int | None) -> StepCostCurve:
    """Return the cost curve of steps. The model is not held: policies of requests that are over have this, too."""
    target = model()
    if target is None:
        raise RuntimeError("this LLM is closed; make a new one")
    return StepCostCurve(*step_seconds(target, groups, identity, FIRST_PATIENCE))

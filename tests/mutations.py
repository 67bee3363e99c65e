"""Breaks the code on purpose, one way at a time, and shows that a test fails for each.

    python tests/mutations.py [NAME...]

Works on a temporary copy of the repository. Names are parts of the mutations' names. Exit code 1 if
a broken engine passes, or if the code that a mutation means to break is not there any more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).parent.parent
ROOMS = ("fastslow", "engine", "draft", "policies", "serve", "tools")
COPIED = (*ROOMS, "tests", "pyproject.toml")
PATIENCE = 600  # seconds for the tests of one mutation

ACCEPT = (
    "tests/engine/sampling/test_accept_exact.py",
    "tests/engine/sampling/test_accept_rules.py",
)
PROMPTS = ("tests/draft/test_head_prompt.py",)
STREAMS = ("tests/engine/sampling/test_rng.py",)
SAMPLING = ("tests/engine/sampling/test_sampling.py",)
PROBS = ("tests/engine/sampling/test_probs.py",)
EXACT = ("tests/engine/core/test_exact.py",)
PEERS = ("tests/engine/model/test_families.py",)
NEW_FAMILY = ("tests/engine/model/test_new_family.py::test_logprobs_are_the_references",)
FAMILY_ROWS = ("tests/engine/model/test_model_rows.py",)
CONFIGS = ("tests/engine/model/test_model_config.py",)
KEYS = ("tests/engine/core/test_exact.py::test_a_draft_models_keys_follow_what_was_accepted",)
DRAFTS = ("tests/draft/test_draft_model.py",)
ACROSS = ("tests/draft/test_draft_across.py",)
LOGPROBS = ("tests/engine/core/test_exact.py::test_logprobs_are_those_of_plain_decoding",)
MIXED = ("tests/engine/core/test_exact.py::test_a_mixed_batch",)
BUDGETS = ("tests/engine/core/test_thinking_exact.py", "tests/engine/sampling/test_thinking.py")
ESCALATION = ("tests/engine/core/test_escalation.py",)
SIMULATED = ("tests/tools/test_simulate_replica.py",)
QUANTISED = ("tests/tools/test_quant_make.py",)
QUANT_FILES = ("tests/engine/model/test_quant_files.py",)
INT8_KV = ("tests/engine/kv/test_kv_storage.py",)
CHATS = ("tests/engine/text/test_text_marks.py",)
VOCABULARY = ("tests/fastslow/test_vocabulary.py::test_what_the_template_writes_is_checked",)
STOP_STRINGS = ("tests/engine/sampling/test_stop.py",)
LOADER = ("tests/engine/model/test_loader.py",)
UNFINISHED = ("tests/engine/host/test_unfinished.py",)
GGUF_FORMATS = ("tests/engine/cpu/test_gguf_formats.py",)
GGUF = ("tests/engine/host/test_gguf_file.py",)
SHIPPED_HEAD = ("tests/fastslow/test_llm_speculation.py",)
STOPS = ("tests/engine/core/test_exact.py::test_an_answer_ends_inside_an_accepted_run",)


@dataclass(frozen=True)
class Mutation:
    """`edits`: (file, code, broken code), each found exactly once. `tests`: who must notice."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


Edits = dict[str, tuple[str, str]]  # name -> code, broken code
BROKEN: dict[tuple[str, tuple[str, ...]], Edits] = {  # by file, and the tests that must notice
    ("engine/sampling/accept/exact.py", ACCEPT): {
        "q ignored": ("draws.random() * float(q_V[x])", "draws.random()"),
        "residual skipped": (
            "left_V = probs - q_V if mass == 1.0 else probs * np.float32(mass) - q_V",
            "left_V = probs.copy()",
        ),
        "last token from all probabilities": (
            "return path, pick(probs, draws)",
            "return path, pick(target_probs[path[-1] + 1 if path else 0], draws)",
        ),
        "siblings judged by one draw": (
            "kept = draws.random()",
            "kept = place(len(path)).random()",
        ),
        "a child kept that is not the target's token": (
            "parent == node and x == token",
            "parent == node",
        ),
        "a followed token drawn at the first place": (
            "draw(probs, place(depth))",
            "draw(probs, place(0))",
        ),
        "block: what a branch owes forgotten": (
            "owed, drafted = mass * weight(probs, x)",
            "owed, drafted = weight(probs, x)",
        ),
        "block: a refusal taken for certain": ("came = 1.0 - mass + rest", "came = 1.0"),
        "block: siblings judged by all probabilities": (
            "probs, mass = left, rest / came",
            "probs, mass = probs, rest / came",
        ),
    },
    ("engine/sampling/rng.py", STREAMS): {
        "drafts and acceptance share a stream": ("DRAFT = 2", "DRAFT = 1"),
    },
    ("engine/core/engine_core.py", PROBS): {
        "stream not addressed by depth": (
            "len(ready[b].tokens) + depth, Purpose.ACCEPT",
            "len(ready[b].tokens), Purpose.ACCEPT",
        ),
    },
    (
        "engine/sampling/probs.py",
        (
            "tests/engine/sampling/test_sampling.py",
            "tests/engine/sampling/test_probs.py",
        ),
    ): {
        "penalty one position late": (
            "torch.tensor([*request.tokens, *drafted]",
            "torch.tensor([*request.tokens, *drafted[:-1]]",
        ),
    },
    ("engine/core/target_probs.py", MIXED): {
        "penalty counts a sibling's path": (
            "[*drafted[parent + 1], token]",
            "[*drafted[-1], token]",
        ),
    },
    ("engine/sampling/probs.py", PROBS): {
        "min_tokens blind to the draft": (
            "_biased(logits_V, request, len(drafted), lift)",
            "_biased(logits_V, request, 0, lift)",
        ),
    },
    ("engine/model/attention.py", PEERS): {
        "a window one token too wide": ("places < seen - window", "places < seen - window - 1"),
        "queries not normed": ("(self.query_norm, self.key_norm)", "(None, self.key_norm)"),
    },
    ("engine/model/attention.py", FAMILY_ROWS): {
        "sibling seen in the tree mask": ("int(parents[path[-1]])", "path[-1] - 1"),
        "keys before a window cut off inside a block": (
            "- window) // block * block if window",
            "- window) if window",
        ),
    },
    ("engine/model/decoder.py", PEERS): {
        "a layer that should not rotate does": ("rotates=n not in c.unrotated", "rotates=True"),
    },
    ("engine/backends/torch/reference.py", PEERS): {
        "sink logits take no share": ("total = total + (sinks - top).exp_()[:, :, 0]", "pass"),
    },
    ("engine/model/rope.py", PEERS): {
        "yarn's factor of attention left out": (
            "config.rope_scaling.attention_factor != 1",
            "config.rope_scaling.attention_factor < 0",
        ),
    },
    ("engine/model/moge.py", FAMILY_ROWS): {
        "weights of fewer experts not divided by their own sum": (
            "weights.masked_fill(idle, -torch.inf).softmax(-1)",
            "weights.softmax(-1)",
        ),
    },
    ("engine/model/decoder.py", NEW_FAMILY): {
        "norms read without their offset": (
            "dtype=wide(self.dtype)).add_(offset)",
            "dtype=wide(self.dtype))",
        ),
        "rows of heads left in the file's order": (
            ".unflatten(0, (-1, c.head_dim))[:, c.rotary_order]",
            ".unflatten(0, (-1, c.head_dim))",
        ),
    },
    ("engine/backends/torch/reference.py", NEW_FAMILY): {
        "attention scores not capped": ("scores = soft_cap(scores, keys.score_cap)", "pass"),
    },
    ("engine/backends/cpu/kernels/step.cpp", NEW_FAMILY): {
        "embeddings that the kernels do not scale": ("x[k] *= s.embedding_scale", "x[k] *= 1.0f"),
    },
    ("engine/checkpoint/fused.py", PEERS): {
        "gates and ups of a fused tensor in one order": (
            "slice(place, None, len(sides))",
            "slice(place * inner, (place + 1) * inner)",
        ),
    },
    ("engine/model/config_json.py", CONFIGS): {
        "an unknown field that changes the forward passes": (
            "if self._strict or CHANGES.search(str(name).lower()):",
            "if self._strict:",
        ),
    },
    ("engine/backends/cpu/step.py", EXACT): {
        "sibling seen in the tree lists of the kernels": (
            "*(tails[parent] if parent >= 0 else ())",
            "*(tails[-1] if parent >= 0 else ())",
        ),
    },
    ("engine/kv/cache.py", EXACT): {
        "rollback to the accepted path skipped": (
            "places = [place for place, node in enumerate(accepted) if node != place]",
            "places: list[int] = []",
        ),
    },
    ("draft/model/kv.py", KEYS): {
        "rollback of the draft model's keys skipped": (
            "text.valid = _common_prefix(written, tokens[:-1])",
            "text.valid = min(len(written), len(tokens) - 1)",
        ),
    },
    ("draft/model/runs.py", DRAFTS): {
        "draft tree: a node does not see its parent": ("slots[path[:-1]]", "slots[path[:0]]"),
        "draft tree: a slot is taken twice": ("if slot not in used]", "if slot >= 0]"),
        "draft tree: a level short": (
            "self._best[: self.nodes - 1]",
            "self._best[: self.nodes - 2]",
        ),
    },
    ("draft/model/vocab.py", ACROSS): {
        "tokens not in common can be drafted": ("NO_MASS = -1e30", "NO_MASS = 0.0"),
    },
    ("draft/model/retokenized.py", ACROSS): {
        "a text is cut inside a character": ("if not begins_inside_character(tail)", "if tail"),
        "a half written character is forgotten": (
            "if partial:\n            if not data",
            "if not partial:\n            if not data",
        ),
    },
    ("engine/backends/cpu/decoder.py", ("tests/draft/test_draft_skip.py",)): {
        "keys of skipped layers are written": ("kv.pointers[:, self._kv_layers]", "kv.pointers"),
    },
    ("engine/core/request.py", MIXED): {
        "groups not in the prefix root": (
            "return groups, self.rope_length, self.memory_key",
            "return 0, self.rope_length, self.memory_key",
        ),
    },
    (
        "fastslow/request/builder.py",
        ("tests/fastslow/test_experts.py::test_a_count_for_each_request_of_a_batch",),
    ): {
        "a mode's experts do not run": ("groups=mode.routed,", "groups=mode.groups,"),
    },
    (
        "engine/core/engine_core.py",
        ("tests/engine/core/test_experts.py::test_a_latency_target_leaves_out_experts",),
    ): {
        "a latency target leaves nothing to run": (
            "max(n, units.least) for n in",
            "max(n, 0) for n in",
        ),
    },
    (
        "engine/model/routed_units.py",
        ("tests/fastslow/test_experts.py::test_without_shared_experts_one_is_the_fewest",),
    ): {
        "a model without shared experts may run none": (
            "config.chosen, int(lonely))",
            "config.chosen, 0)",
        ),
    },
    ("engine/core/engine_core.py", STOPS): {
        "stop inside a run not cut": (
            "else request.stopper.scan(run, whole_at)",
            "else max(request.stopper.scan(result.tokens[b]), len(result.tokens[b]))",
        ),
    },
    ("engine/sampling/stop.py", STOP_STRINGS): {
        "half a stop string is streamed": ("end = len(untold) - held", "end = len(untold)"),
    },
    ("engine/text/chat_parts.py", CHATS): {
        "what a user spells is a mark": ("sign.join(self.parts(text, role))", "text"),
    },
    ("fastslow/request/input_processor.py", VOCABULARY): {
        "ids beside the vocabulary are read": (
            "if max(ids, default=0) > last:",
            "if max(ids, default=0) > last + 1:",
        ),
    },
    ("engine/core/target_probs.py", LOGPROBS): {
        "logprobs of the row before": (
            "*(n + 1 for n in result.accepted_nodes[b])",
            "*(n for n in result.accepted_nodes[b])",
        ),
    },
    ("engine/core/layout.py", EXACT): {
        "siblings at different positions": (
            "*(last + depth for depth in tree.depths)",
            "*(last + 1 + i for i, _ in enumerate(tree.depths))",
        ),
    },
    ("engine/types.py", MIXED): {
        "one mode for the whole batch": (
            "groups += [ALL_GROUPS if s.groups is None else s.groups] * size",
            "groups += [ALL_GROUPS if segments[0].groups is None else segments[0].groups] * size",
        ),
    },
    ("engine/backends/cpu/store.py", ("tests/engine/cpu/test_cpu_load.py",)): {
        "a damaged packing is used": (
            "_sum(path, arena, hot) == mapped[arena.nbytes :].tobytes()",
            "_sum(path, arena, hot)",
        ),
    },
    ("engine/backends/cpu/kernel_cache.py", ("tests/engine/cpu/test_kernel_cache.py",)): {
        "kernels that anybody may write to run": ("if mode & 0o002 or", "if False or"),
    },
    ("engine/backends/cpu/kernels/check.cpp", ("tests/engine/cpu/test_kernel_checks.py",)): {
        "tokens outside the embedding are embedded": (
            'check_all("token", a.tokens, a.rows, 0, s.embedding_rows);',
            'check_all("token", a.tokens, 0, 0, s.embedding_rows);',
        ),
    },
    ("engine/backends/cpu/kernels/head.cpp", ("tests/engine/cpu/test_only_best.py",)): {
        "a screened logit is taken for exact": (
            "(errors * screened + norms * lost) * 1.001f",
            "(errors * screened + norms * lost) * 0.0f",
        ),
    },
    ("policies/speculation/acceptance.py", ("tests/policies/test_length.py",)): {
        "nodes after a rejected node are judged": (
            "if parent < 0 or parent in accepted)",
            "if True)",
        ),
        "drafters of one name share their acceptance": (
            "return by, min(depth, self.tuning.deepest)",
            "return 0, min(depth, self.tuning.deepest)",
        ),
    },
    (
        "policies/speculation/backoff.py",
        (
            "tests/policies/test_backoff.py",
            "tests/draft/test_adaptive_draft.py",
        ),
    ): {
        "a try in vain is repeated as soon as before": (
            "math.ceil(min(growth * self._patience, longest))",
            "math.ceil(min(self._patience, longest))",
        ),
    },
    ("policies/speculation/ab_gate.py", ("tests/policies/test_ab_gate.py",)): {
        "the gate never changes its mind": (
            "self.drafting, self.rates = pays, []",
            "self.rates = []",
        ),
        "steps that read prompts are compared": (
            "if self._decides and pure and comparison",
            "if self._decides and comparison",
        ),
    },
    ("policies/speculation/selection.py", ("tests/draft/test_adaptive_draft.py",)): {
        "drafters cost no time": (
            "price = self._tuning.ask_overhead * known.seconds.value",
            "pass",
        ),
        "all drafters are asked where rows are dearest": (
            "if drafter > 0 and self._rows_cost_too_much(value):",
            "if False:",
        ),
    },
    ("policies/speculation/step_cost.py", ("tests/policies/test_length.py",)): {
        "a step that was held up counts in full": (
            "ratio = min(max(ratio, before / tuning.step_limit), before * tuning.step_limit)",
            "pass",
        ),
    },
    ("engine/sampling/thinking.py", BUDGETS): {
        "drafted thoughts do not count": (
            "state = self._step(self._after(tokens, drafted[:-1]), drafted[-1])",
            "state = self._after(tokens, drafted[:-1])",
        ),
        "a thought that the answer opens has a token more": (
            "spent=state.spent - inside,",
            "spent=state.spent - inside - 1,",
        ),
    },
    ("policies/thinking_budget.py", BUDGETS): {
        "a thought is closed one token late": (
            "thought.spent >= self._most:",
            "thought.spent > self._most:",
        ),
    },
    ("engine/sampling/thinking.py", ("tests/engine/sampling/test_thinking.py",)): {
        "the closing phrase is said twice": ("said=state.said or forced)", "said=False)"),
        "the closing phrase counts as thought": (
            "counted = state.thinking and not forced",
            "counted = state.thinking",
        ),
    },
    ("engine/sampling/probs.py", BUDGETS): {
        "a forced token is not forced where only the best is wanted": (
            "return OneHot(best) if forced is None else forced",
            "return OneHot(best)",
        ),
        "a soft budget is not seen where only the best is wanted": (
            "and (request.thinking is None or not request.thinking.lifts(request.tokens))",
            "and True",
        ),
    },
    ("engine/sampling/probs.py", ("tests/engine/sampling/test_accept_stepwise.py",)): {
        "a line is kept where the budget forced another token": (
            "if not isinstance(decided, OneHot) or isinstance(forced, OneHot):",
            "if not isinstance(decided, OneHot):",
        ),
    },
    ("engine/sampling/thinking.py", PROBS): {
        "the closing tag is lifted by what is committed only": (
            "by = self._policy.lift(state.spent)",
            "by = self._policy.lift(self._state.spent)",
        ),
    },
    ("fastslow/request/answer_rules.py", ("tests/fastslow/test_llm_thinking.py",)): {
        "thinking off does not close thoughts": (
            "if most is None and self._inputs.silences(mode) and prompt.chat:",
            "if most is None and self._inputs.silences(mode) and not prompt.chat:",
        ),
    },
    ("fastslow/request/input_processor.py", ("tests/fastslow/test_llm_families.py",)): {
        "a model that cannot do without a thought is denied one": (
            'return mode.thinking == "off" and not self.switch.lessens',
            'return mode.thinking == "off"',
        ),
    },
    ("engine/text/switches.py", ("tests/engine/text/test_text_switches.py",)): {
        "the least effort is the most": ("self.levels[-1 if on else 0]", "self.levels[-1]"),
        "a word that is only left out is a switch": (
            "ways = plain, plain.replace",
            "ways = plain.replace(SAID, said), plain.replace",
        ),
    },
    ("engine/text/thought.py", ("tests/engine/text/test_text_channels.py",)): {
        "commentary is the answer": ('not in ([], ["final"])', '== ["analysis"]'),
    },
    ("engine/core/target_probs.py", ESCALATION): {
        "an unsure run is not cut": ("size = confidence.keeps(values)", "size = len(values)"),
    },
    ("engine/core/scheduler.py", ESCALATION): {
        "pages of two modes are published": (
            "kv_from_previous_mode.length\n            ):\n                self._kv.stop_publishing(request.id)",
            "kv_from_previous_mode.length\n            ):\n                pass",
        ),
    },
    ("engine/core/request.py", ESCALATION): {
        "a chunk runs over a change of groups": (
            "return self.kv_from_previous_mode.length - self.computed",
            "return self.pending",
        ),
    },
    ("engine/core/layout.py", ESCALATION): {
        "kept rows are computed again under the new groups": (
            "groups=request.current_groups,",
            "groups=request.groups,",
        ),
    },
    ("fastslow/request/choice.py", ESCALATION): {
        "a stream tells of an answer that is dropped": (
            "if self.streaming and not unsure:",
            "if self.streaming:",
        ),
    },
    ("engine/core/engine_core.py", ("tests/fastslow/test_handle.py",)): {
        "a request runs past its deadline": (
            "if time.monotonic() >= self._next_deadline:",
            "if time.monotonic() < 0:",
        ),
    },
    ("fastslow/request/group.py", ("tests/fastslow/test_handle.py",)): {
        "a task that is cancelled leaves its request running": (
            "except BaseException:  # the task is cancelled, or its loop is gone",
            "except ValueError:",
        ),
    },
    (
        "fastslow/request/handle.py",
        (
            "tests/fastslow/test_handle.py",
            "tests/fastslow/test_llm.py",
        ),
    ): {
        "a stream that is dropped goes on": (
            "def __del__(self) -> None:\n        self.close()",
            "def __del__(self) -> None:\n        pass",
        ),
    },
    ("engine/core/latency_budget.py", ("tests/engine/core/test_targets.py",)): {
        "a request that was skipped long enough waits on": (
            "return max(fits, min(rows, LEAST))",
            "return fits",
        ),
        "a target cuts its own draft unasked": (
            "if request.latency_target is not None and not request.may_cut_draft:",
            "if False:",
        ),
    },
    ("engine/core/scheduler.py", ("tests/engine/core/test_targets.py",)): {
        "prompts with a target wait behind others": (
            "return int(request.latency_target is None), request.pending > 1, request.priority",
            "return 0, request.pending > 1, request.priority",
        ),
        "prompts of one token overtake all others": (
            "request = min(self.waiting, key=_waiting_rank)",
            "request = min(self.waiting, key=_running_rank)",
        ),
    },
    ("engine/core/scheduler.py", ("tests/engine/core/test_priority.py",)): {
        "the most urgent request loses its pages": (
            "victim = max(beside, key=lambda r: (r.priority, r.arrival))",
            "victim = max(beside, key=_age)",
        ),
        "a request of low priority waits for ever": ("oldest.priority = FIRST", "pass"),
        "priority ignored where places are free": (
            "return int(request.latency_target is None), request.pending > 1, request.priority",
            "return int(request.latency_target is None), request.pending > 1, 0",
        ),
    },
    ("fastslow/request/builder.py", ("tests/serve/test_engine_protocol.py",)): {
        "priority lost on the way to the engine": ("priority=options.priority,", "priority=0,"),
    },
    ("draft/prediction.py", ("tests/fastslow/test_prediction.py",)): {
        "a prediction drafted from inside the thought": (
            "if thinking is not None and thinking.inside(request.tokens):",
            "if thinking is not None and not request.tokens:",
        ),
    },
    ("engine/sampling/probs.py", ("tests/engine/core/test_grammar_exact.py",)): {
        "a grammar's mask ignored": (
            "mask = None if request.grammar is None else request.grammar.at(request.tokens, drafted)",
            "mask = None",
        ),
    },
    ("engine/sampling/grammar.py", ("tests/engine/sampling/test_grammar.py",)): {
        "a grammar begins inside the thought": (
            "self._state = _Progress(start.first)",
            "self._state = _Progress(None)",
        ),
    },
    ("serve/api/limits.py", ("tests/serve/test_caller.py",)): {
        "a cache salt shared by all keys": (
            'return _derived(self.memory_key or OPEN, "salt", cache_salt)',
            'return _derived(OPEN, "salt", cache_salt)',
        ),
    },
    (
        "serve/api/fields.py",
        ("tests/serve/test_warm.py::test_the_first_request_of_every_caller_finds_it[local]",),
    ): {
        "a cache salt ignored": ("who.memory(self.cache_salt)", "who.memory(None)"),
    },
    ("fastslow/request/choice.py", ("tests/fastslow/test_handle.py",)): {
        "pieces of n answers with one index": (
            "logprobs, self._index, sources, decided)",
            "logprobs, 0, sources, decided)",
        ),
    },
    ("engine/core/engine_core.py", ("tests/engine/core/test_continued.py",)): {
        "a continued answer draws its latest token again": (
            "result.accepted_nodes[b], result.tokens[b] = [], [token]",
            "pass",
        ),
    },
    ("engine/core/scheduler.py", ("tests/engine/core/test_continued.py",)): {
        "log-probabilities of a continued answer begin behind the prefix cache": (
            "most = min(most, request.prompt_length - 1)",
            "pass",
        ),
    },
    ("fastslow/request/resume.py", ("tests/engine/core/test_continued.py",)): {
        "a continued answer is not looked at for stops": (
            "kept = request.stopper.scan(text)",
            "kept = 0",
        ),
    },
    ("fastslow/request/builder.py", ("tests/fastslow/test_answered.py",)): {
        "a continued answer's mode is chosen again": ("if decided is not None:", "if False:"),
    },
    ("serve/engines/sent_pieces.py", ("tests/serve/test_continued_engine.py",)): {
        "what was sent is sent again": ("return text[max(0, known) :]", "return text"),
    },
    ("serve/engines/local.py", ("tests/serve/test_continued_answers.py",)): {
        "a closing engine cuts answers that another one would go on with": (
            "if cut and ask.whole and",
            "if False and",
        ),
    },
    ("fastslow/admission.py", ("tests/fastslow/test_async_llm.py",)): {
        "a full queue takes more": ("if missing > 0:", "if missing > 10**6:"),
    },
    ("serve/api/errors.py", ("tests/serve/test_streams.py",)): {
        "a busy server says nothing of when to come back": (
            '"busy", error.retry_after)',
            '"busy", SOON)',
        ),
    },
    ("engine/core/request.py", ("tests/fastslow/test_pin.py",)): {
        "what is asked behind a pinned prefix is everybody's": (
            "return groups, self.rope_length, self.memory_key",
            "return groups, self.rope_length, None",
        ),
    },
    ("fastslow/request/pin.py", ("tests/fastslow/test_pin.py",)): {
        "a usual pin is open to every key": (
            "opened = for_all if every_key else None",
            "opened = for_all",
        ),
    },
    ("engine/kv/prefix.py", ("tests/engine/kv/test_kv_for_all.py",)): {
        "pages behind other pages of their text are shared": (
            "if page is None or self._parent_of[page] != (pages[-1] if pages else -1):",
            "if page is None:",
        ),
    },
    ("engine/sampling/rng.py", ESCALATION): {
        "a second answer is drawn as the first was": (
            "return int(words[0]) >> 1\n\n\ndef draw",
            "return seed\n\n\ndef draw",
        ),
    },
    ("draft/model/kv.py", ("tests/engine/kv/test_prefix_root.py",)): {
        "a draft model's pages do not know their rotary base": (
            "return self.groups, self.rope_length, self.request.memory_key",
            "return self.groups, 0, self.request.memory_key",
        ),
    },
    ("draft/suffix/draft.py", ("tests/draft/test_suffix_draft.py",)): {
        "answers are remembered for everybody": (
            "self._memory.of(request.memory_key)",
            "self._memory.of(None)",
        ),
    },
    ("engine/sampling/accept/lossy.py", ("tests/engine/sampling/test_accept_stepwise.py",)): {
        "a step is kept though one before it was refused": ("kept = node.alive and", "kept ="),
    },
    ("draft/head/draft.py", PROMPTS): {
        "a prompt's rows stand one place off": (
            "parts.append(features[end - sizes[-1] : end])",
            "parts.append(features[end - sizes[-1] : end].roll(1, 0))",
        ),
        "each prompt token goes with its own row": (
            "request.tokens[first + 1 : some.stop + 1]",
            "request.tokens[first : some.stop]",
        ),
        "a prompt is dropped where rows wait": (
            "                self._flush(state)\n            state.features.append(own)",
            "                self.release([request.id])\n                state = self._state_at(request, first)\n            state.features.append(own)",
        ),
        "drafting from a row that was only read": (
            "state.can_draft and state.end ==",
            "state.end ==",
        ),
    },
    (
        "engine/core/layout.py",
        (
            "tests/draft/test_head_engine.py",
            "tests/draft/test_head_prompt.py",
        ),
    ): {
        "features of the verified rows from where their logits are": (
            "verify_seen.append(looks + len(seen))",
            "verify_seen.append(looks)",
        ),
    },
    ("tools/train_head/unroll.py", PROMPTS): {
        "a chain in training forgets the prompt": ("tril(before - step)", "tril(-step)"),
    },
    ("tools/train_head/batches.py", PROMPTS): {
        "a prompt's places begin where the answer's do": (
            "torch.arange(-features.shape[1], 0)",
            "torch.arange(features.shape[1])",
        ),
    },
    (
        "engine/backends/cpu/decoder.py",
        (
            "tests/engine/model/test_model.py::test_features_of_rows_without_logits",
            "tests/draft/test_head_prompt.py",
        ),
    ): {
        "kernels write the features of wanted logits": (
            "seen = len(contexts), rows.feature_rows if features else rows.feature_rows[:0]",
            "seen = len(contexts), rows.outputs if features else rows.feature_rows[:0]",
        ),
    },
    ("policies/auto.py", ("tests/policies/test_auto.py",)): {
        "a selector's means are forgotten": (
            "weight * (seen[name] - self.means.get(name, 0.0))",
            "weight * seen[name]",
        ),
    },
    ("tools/tune/selector.py", ("tests/tools/test_tune_selector.py",)): {
        "a fold tests what it was fitted to": (
            "            fitted = fit(features_NF[others], wanted_N[others], weights_N[others])",
            "            fitted = fit(features_NF, wanted_N, weights_N)",
        ),
    },
    ("tools/quantize/smooth.py", QUANTISED): {
        "smoothing folded on one side": (
            'tensors[f"{name}.weight"] * columns',
            'tensors[f"{name}.weight"]',
        ),
        "only the first reader's demand": ("torch.stack(demands).amax(0)", "demands[0]"),
    },
    ("tools/quantize/quantize_layer.py", QUANTISED): {
        "a gate aligned at any price": ("if found > after:", "if found >= 0:"),
        "rounding errors carried on with the wrong sign": (
            "block[i + 1 :] -= factor",
            "block[i + 1 :] += factor",
        ),
    },
    ("tools/quantize/calibration.py", QUANTISED): {
        "calibration keeps every text": ("bool((short & (counts > 0)).any())", "True"),
    },
    ("tools/simulate/replica.py", SIMULATED): {
        "a simulated prompt read without regard to a target": (
            "if answer.request.latency_ms is None and limit is not None:",
            "if False:",
        ),
        "a simulated replica's cache never evicted": (
            "self._cache.evict(-self._free(idle=False))",
            "pass",
        ),
        "simulated replicas of a machine do not slow each other": (
            "(seconds + costs.step(decode, prompts)) * costs.slowed(self._others())",
            "seconds + costs.step(decode, prompts)",
        ),
        "a simulated request starts without room for its prompt": (
            "if running and length - cached > self._free():",
            "if False:",
        ),
        "a cached prefix read again in a simulation": (
            "answer.left = length - cached",
            "answer.left = length",
        ),
    },
    ("engine/checkpoint/quantised.py", QUANT_FILES): {
        "a static input's offset forgotten": (
            " + offset * weight.double().sum(-1)",
            " + 0 * offset",
        ),
    },
    ("engine/backends/cpu/pieces.py", QUANT_FILES): {
        "int8 outputs in the wrong order of scales": (
            "scales = _ordered(matrix.scale_O.numpy(), self.order)",
            "scales = _ordered(matrix.scale_O.numpy()[::-1].copy(), self.order)",
        ),
    },
    ("engine/backends/cpu/kernels/score_int8.h", INT8_KV): {
        "int8 values without their scales": (
            "load<vf>(scores + k) * load<vf>(scales + k)",
            "load<vf>(scores + k)",
        ),
    },
    ("engine/backends/cpu/kv.py", INT8_KV): {
        "moved int8 rows leave their scales behind": (
            "self._scales()[:, tiles, :, :, lanes] = scales.permute(2, 1, 3, 0)",
            "self._scales()",
        ),
    },
    ("engine/checkpoint/checkpoint.py", LOADER): {
        "4-bit blocks of any shape are taken": (
            'file.get_slice(name), Expected((shape,), ("U8",))',
            'file.get_slice(name), Expected((tuple(file.get_slice(name).get_shape()),), ("U8",))',
        ),
    },
    ("engine/host/unfinished.py", UNFINISHED): {
        "the work of a living process is swept": (
            "        if not _take(lock, handle):",
            "        if _take(lock, handle) is None:",
        ),
        "what another machine makes is swept": (
            'ours = os.read(handle, 64) == _boot() != b""',
            "ours = True",
        ),
    },
    ("engine/host/gguf_file.py", GGUF): {
        "tensors of a GGUF file may overlap": ("if begin < end:", "if begin < 0:"),
    },
    ("draft/head/runner.py", SHIPPED_HEAD): {
        "a shipped head for any model of its width": (
            "fitting.get(fingerprint(target)) if fitting else None",
            "next(iter(fitting.values()), None)",
        ),
    },
    ("engine/backends/cpu/kernels/file_kernel.h", GGUF_FORMATS): {
        "a file's numbers keep what their zero adds": (
            "return less << Form::ZERO;",
            "return less;",
        ),
        "the second half of a Q6_K block has the first's scale": (
            "scales.d[b * PARTS + i * PARTS / BLOCK][output]",
            "scales.d[b * PARTS][output]",
        ),
    },
    ("engine/backends/cpu/decoder.py", GGUF_FORMATS): {
        "values are read as if they were in the keys' format": (
            "found[name] = library.CMatrix(tiles, bias, run.format,",
            "found[name] = library.CMatrix(tiles, bias, piece.runs[1].format,",
        ),
    },
    ("engine/backends/cpu/library.py", GGUF_FORMATS): {
        "a row of zeros is the file's first": (
            "np.where(order < 0, 0, rows[order])",
            "rows[np.maximum(order, 0)]",
        ),
    },
}
MUTATIONS = (
    *(
        Mutation(name, ((file, code, broken),), tests)
        for (file, tests), edits in BROKEN.items()
        for name, (code, broken) in edits.items()
    ),
    Mutation(
        "a preempted request keeps what was computed",
        (
            ("engine/core/scheduler.py", "request.computed = 0\n", "pass\n"),
            (
                "engine/core/scheduler.py",
                "request.computed = cached\n",
                "request.computed = max(request.computed, cached)\n",
            ),
        ),
        MIXED,
    ),
)


@contextmanager
def broken(copy: Path, mutation: Mutation) -> Iterator[None]:
    """The copy with the edits in place, and as it was afterwards."""
    before: dict[Path, str] = {}
    try:
        for name, old, new in mutation.edits:
            path = copy / name
            text = path.read_text("utf-8")
            before.setdefault(path, text)
            if text.count(old) != 1:
                raise LookupError(f"{name} holds {old!r} {text.count(old)} times, not once")
            path.write_text(text.replace(old, new), "utf-8")
        yield
    finally:
        for path, text in before.items():
            path.write_text(text, "utf-8")


def first_failure(copy: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests],
            check=False,
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "a test that did not come to an end"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S*?::(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise RuntimeError(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


def own_package(copy: Path) -> Path:
    """Where the tests of the copy would import the package from."""
    code = "import fastslow.engine.core.engine_core as c; print(c.__file__)"
    env = {**os.environ, "PYTHONPATH": str(copy)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=env, check=True, capture_output=True, text=True
    )
    return Path(run.stdout.strip())


def main(wanted: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not wanted or any(part in m.name for part in wanted)]
    table = Table("mutation", "caught by", "seconds")
    console = Console(width=None if sys.stdout.isatty() else 130)
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "repo"
        copy.mkdir()
        ignored = shutil.ignore_patterns("__pycache__", "data")
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, copy / name)
        if not own_package(copy).is_relative_to(copy):
            raise RuntimeError(f"the tests would not import the copy but {own_package(copy)}")
        for mutation in chosen:
            started = time.monotonic()
            with broken(copy, mutation):
                failure = first_failure(copy, mutation.tests)
            survived += failure is None
            seconds = f"{time.monotonic() - started:.0f}"
            caught_by = escape(failure or "NOBODY")
            table.add_row(mutation.name, caught_by, seconds)
            console.print(f"{mutation.name}: {caught_by} ({seconds} s)", style="dim")
    console.print(table)
    console.print(f"{len(chosen) - survived} of {len(chosen)} mutations caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

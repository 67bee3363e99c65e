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
    "tests/engine/sampling/test_accept.py",
)
PROMPTS = ("tests/draft/test_head_prompt.py",)
STREAMS = ("tests/engine/sampling/test_accept.py",)
SAMPLING = ("tests/engine/sampling/test_sampling.py",)
PROBS = ("tests/engine/sampling/test_probs.py",)
EXACT = ("tests/engine/core/test_exact.py",)
PEERS = ("tests/engine/model/test_families.py",)
NEW_FAMILY = ("tests/engine/model/test_new_family.py::test_logprobs_are_the_references",)
FAMILY_ROWS = ("tests/engine/model/test_family_rows.py",)
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
INT8_KV = ("tests/engine/kv/test_kv_int8.py",)
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


def swap(name: str, file: str, old: str, new: str, tests: tuple[str, ...]) -> Mutation:
    return Mutation(name, ((file, old, new),), tests)


MUTATIONS = (
    swap(
        "q ignored",
        "engine/sampling/accept/exact.py",
        "draws.random() * float(q_V[x])",
        "draws.random()",
        ACCEPT,
    ),
    swap(
        "residual skipped",
        "engine/sampling/accept/exact.py",
        "left_V = probs - q_V if mass == 1.0 else probs * np.float32(mass) - q_V",
        "left_V = probs.copy()",
        ACCEPT,
    ),
    swap(
        "last token from all probabilities",
        "engine/sampling/accept/exact.py",
        "return path, pick(probs, draws)",
        "return path, pick(target_probs[path[-1] + 1 if path else 0], draws)",
        ACCEPT,
    ),
    swap(
        "siblings judged by one draw",
        "engine/sampling/accept/exact.py",
        "kept = draws.random()",
        "kept = place(len(path)).random()",
        ACCEPT,
    ),
    swap(
        "a child kept that is not the target's token",
        "engine/sampling/accept/exact.py",
        "parent == node and x == token",
        "parent == node",
        ACCEPT,
    ),
    swap(
        "a followed token drawn at the first place",
        "engine/sampling/accept/exact.py",
        "draw(probs, place(depth))",
        "draw(probs, place(0))",
        ACCEPT,
    ),
    swap(
        "block: what a branch owes forgotten",
        "engine/sampling/accept/exact.py",
        "owed, drafted = mass * weight(probs, x)",
        "owed, drafted = weight(probs, x)",
        ACCEPT,
    ),
    swap(
        "block: a refusal taken for certain",
        "engine/sampling/accept/exact.py",
        "came = 1.0 - mass + rest",
        "came = 1.0",
        ACCEPT,
    ),
    swap(
        "block: siblings judged by all probabilities",
        "engine/sampling/accept/exact.py",
        "probs, mass = left, rest / came",
        "probs, mass = probs, rest / came",
        ACCEPT,
    ),
    swap(
        "drafts and acceptance share a stream",
        "engine/sampling/rng.py",
        "DRAFT = 2",
        "DRAFT = 1",
        STREAMS,
    ),
    swap(
        "stream not addressed by depth",
        "engine/core/engine_core.py",
        "len(ready[b].tokens) + depth, Purpose.ACCEPT",
        "len(ready[b].tokens), Purpose.ACCEPT",
        PROBS,
    ),
    swap(
        "penalty one position late",
        "engine/sampling/probs.py",
        "torch.tensor([*request.tokens, *drafted]",
        "torch.tensor([*request.tokens, *drafted[:-1]]",
        (*SAMPLING, *PROBS),
    ),
    swap(
        "penalty counts a sibling's path",
        "engine/core/target_probs.py",
        "[*drafted[parent + 1], token]",
        "[*drafted[-1], token]",
        MIXED,
    ),
    swap(
        "min_tokens blind to the draft",
        "engine/sampling/probs.py",
        "_biased(logits_V, request, len(drafted), lift)",
        "_biased(logits_V, request, 0, lift)",
        PROBS,
    ),
    swap(
        "sibling seen in the tree mask",
        "engine/model/attention.py",
        "int(parents[path[-1]])",
        "path[-1] - 1",
        ("tests/engine/model/test_model_rows.py",),  # in float64: elsewhere the kernels run
    ),
    swap(
        "a window one token too wide",
        "engine/model/attention.py",
        "places < seen - window",
        "places < seen - window - 1",
        PEERS,
    ),
    swap(
        "keys before a window cut off inside a block",
        "engine/model/attention.py",
        "- window) // block * block if window",
        "- window) if window",
        FAMILY_ROWS,
    ),
    swap(
        "queries not normed",
        "engine/model/attention.py",
        "(self.query_norm, self.key_norm)",
        "(None, self.key_norm)",
        PEERS,
    ),
    swap(
        "a layer that should not rotate does",
        "engine/model/decoder.py",
        "rotates=n not in c.unrotated",
        "rotates=True",
        PEERS,
    ),
    swap(
        "sink logits take no share",
        "engine/backends/torch/reference.py",
        "total = total + (sinks - top).exp_()[:, :, 0]",
        "pass",
        PEERS,
    ),
    swap(
        "yarn's factor of attention left out",
        "engine/model/rope.py",
        "config.rope_scaling.attention_factor != 1",
        "config.rope_scaling.attention_factor < 0",
        PEERS,
    ),
    swap(
        "weights of fewer experts not divided by their own sum",
        "engine/model/moge.py",
        "weights.masked_fill(idle, -torch.inf).softmax(-1)",
        "weights.softmax(-1)",
        FAMILY_ROWS,
    ),
    swap(
        "norms read without their offset",
        "engine/model/decoder.py",
        "dtype=wide(self.dtype)).add_(offset)",
        "dtype=wide(self.dtype))",
        NEW_FAMILY,
    ),
    swap(
        "attention scores not capped",
        "engine/backends/torch/reference.py",
        "scores = soft_cap(scores, keys.score_cap)",
        "pass",
        NEW_FAMILY,
    ),
    swap(
        "embeddings that the kernels do not scale",
        "engine/backends/cpu/kernels/step.cpp",
        "x[k] *= s.embedding_scale",
        "x[k] *= 1.0f",
        NEW_FAMILY,
    ),
    swap(
        "rows of heads left in the file's order",
        "engine/model/decoder.py",
        ".unflatten(0, (-1, c.head_dim))[:, c.rotary_order]",
        ".unflatten(0, (-1, c.head_dim))",
        NEW_FAMILY,
    ),
    swap(
        "gates and ups of a fused tensor in one order",
        "engine/checkpoint/fused.py",
        "slice(place, None, len(sides))",
        "slice(place * inner, (place + 1) * inner)",
        PEERS,
    ),
    swap(
        "an unknown field that changes the forward passes",
        "engine/model/config_json.py",
        "if self._strict or CHANGES.search(str(name).lower()):",
        "if self._strict:",
        CONFIGS,
    ),
    swap(
        "sibling seen in the tree lists of the kernels",
        "engine/backends/cpu/step.py",
        "*(tails[parent] if parent >= 0 else ())",
        "*(tails[-1] if parent >= 0 else ())",
        EXACT,
    ),
    swap(
        "rollback to the accepted path skipped",
        "engine/kv/cache.py",
        "places = [place for place, node in enumerate(accepted) if node != place]",
        "places: list[int] = []",
        EXACT,
    ),
    swap(
        "rollback of the draft model's keys skipped",
        "draft/model/kv.py",
        "text.valid = _common_prefix(written, tokens[:-1])",
        "text.valid = min(len(written), len(tokens) - 1)",
        KEYS,
    ),
    swap(
        "draft tree: a node does not see its parent",
        "draft/model/runs.py",
        "slots[path[:-1]]",
        "slots[path[:0]]",
        DRAFTS,
    ),
    swap(
        "draft tree: a slot is taken twice",
        "draft/model/runs.py",
        "if slot not in used]",
        "if slot >= 0]",
        DRAFTS,
    ),
    swap(
        "draft tree: a level short",
        "draft/model/runs.py",
        "self._best[: self.nodes - 1]",
        "self._best[: self.nodes - 2]",
        DRAFTS,
    ),
    swap(
        "tokens not in common can be drafted",
        "draft/model/vocab.py",
        "NO_MASS = -1e30",
        "NO_MASS = 0.0",
        ACROSS,
    ),
    swap(
        "a text is cut inside a character",
        "draft/model/retokenized.py",
        "if not begins_inside_character(tail)",
        "if tail",
        ACROSS,
    ),
    swap(
        "a half written character is forgotten",
        "draft/model/retokenized.py",
        "if partial:\n            if not data",
        "if not partial:\n            if not data",
        ACROSS,
    ),
    swap(
        "keys of skipped layers are written",
        "engine/backends/cpu/decoder.py",
        "kv.pointers[:, self._kv_layers]",
        "kv.pointers",
        ("tests/draft/test_draft_skip.py",),
    ),
    swap(
        "groups not in the prefix root",
        "engine/core/request.py",
        "return groups, self.rope_length, self.memory_key",
        "return 0, self.rope_length, self.memory_key",
        MIXED,
    ),
    swap(
        "a mode's experts do not run",
        "fastslow/request/builder.py",
        "groups=mode.routed,",
        "groups=mode.groups,",
        ("tests/fastslow/test_experts.py::test_a_count_for_each_request_of_a_batch",),
    ),
    swap(
        "a latency target leaves nothing to run",
        "engine/core/engine_core.py",
        "max(n, units.least) for n in",
        "max(n, 0) for n in",
        ("tests/engine/core/test_experts.py::test_a_latency_target_leaves_out_experts",),
    ),
    swap(
        "a model without shared experts may run none",
        "engine/model/routed_units.py",
        "config.chosen, int(lonely))",
        "config.chosen, 0)",
        ("tests/fastslow/test_experts.py::test_without_shared_experts_one_is_the_fewest",),
    ),
    swap(
        "stop inside a run not cut",
        "engine/core/engine_core.py",
        "else request.stopper.scan(run, whole_at)",
        "else max(request.stopper.scan(result.tokens[b]), len(result.tokens[b]))",
        STOPS,
    ),
    swap(
        "half a stop string is streamed",
        "engine/sampling/stop.py",
        "end = len(untold) - held",
        "end = len(untold)",
        STOP_STRINGS,
    ),
    swap(
        "what a user spells is a mark",
        "engine/text/chat_parts.py",
        "sign.join(self.parts(text, role))",
        "text",
        CHATS,
    ),
    swap(
        "ids beside the vocabulary are read",
        "fastslow/request/input_processor.py",
        "if max(ids, default=0) > last:",
        "if max(ids, default=0) > last + 1:",
        VOCABULARY,
    ),
    swap(
        "logprobs of the row before",
        "engine/core/target_probs.py",
        "*(n + 1 for n in result.accepted_nodes[b])",
        "*(n for n in result.accepted_nodes[b])",
        LOGPROBS,
    ),
    swap(
        "siblings at different positions",
        "engine/core/layout.py",
        "*(last + depth for depth in tree.depths)",
        "*(last + 1 + i for i, _ in enumerate(tree.depths))",
        EXACT,
    ),
    swap(
        "one mode for the whole batch",
        "engine/types.py",
        "groups += [ALL_GROUPS if s.groups is None else s.groups] * size",
        "groups += [ALL_GROUPS if segments[0].groups is None else segments[0].groups] * size",
        MIXED,
    ),
    swap(
        "a damaged packing is used",
        "engine/backends/cpu/store.py",
        "_sum(path, arena, hot) == mapped[arena.nbytes :].tobytes()",
        "_sum(path, arena, hot)",
        ("tests/engine/cpu/test_cpu_load.py",),
    ),
    swap(
        "kernels that anybody may write to run",
        "engine/backends/cpu/kernel_cache.py",
        "if mode & 0o002 or",
        "if False or",
        ("tests/engine/cpu/test_kernel_cache.py",),
    ),
    swap(
        "tokens outside the embedding are embedded",
        "engine/backends/cpu/kernels/check.cpp",
        'check_all("token", a.tokens, a.rows, 0, s.embedding_rows);',
        'check_all("token", a.tokens, 0, 0, s.embedding_rows);',
        ("tests/engine/cpu/test_kernel_checks.py",),
    ),
    swap(
        "a screened logit is taken for exact",
        "engine/backends/cpu/kernels/head.cpp",
        "(errors * screened + norms * lost) * 1.001f",
        "(errors * screened + norms * lost) * 0.0f",
        ("tests/engine/cpu/test_only_best.py",),
    ),
    swap(
        "nodes behind a refused one are judged",
        "policies/speculation/acceptance.py",
        "if parent < 0 or parent in accepted)",
        "if True)",
        ("tests/policies/test_length.py",),
    ),
    swap(
        "drafters behind one name share their acceptance",
        "policies/speculation/acceptance.py",
        "return by, min(depth, self.tuning.deepest)",
        "return 0, min(depth, self.tuning.deepest)",
        ("tests/policies/test_length.py",),
    ),
    swap(
        "a try in vain is repeated as soon as before",
        "policies/speculation/backoff.py",
        "math.ceil(min(growth * self._patience, longest))",
        "math.ceil(min(self._patience, longest))",
        ("tests/policies/test_backoff.py", "tests/draft/test_adaptive_draft.py"),
    ),
    swap(
        "the gate never changes its mind",
        "policies/speculation/ab_gate.py",
        "self.drafting, self.rates = pays, []",
        "self.rates = []",
        ("tests/policies/test_ab_gate.py",),
    ),
    swap(
        "steps that read prompts are compared",
        "policies/speculation/ab_gate.py",
        "if self._decides and pure and comparison",
        "if self._decides and comparison",
        ("tests/policies/test_ab_gate.py",),
    ),
    swap(
        "drafters cost no time",
        "policies/speculation/selection.py",
        "price = self._tuning.ask_overhead * known.seconds.value",
        "pass",
        ("tests/draft/test_adaptive_draft.py",),
    ),
    swap(
        "all drafters are asked where rows are dearest",
        "policies/speculation/selection.py",
        "if drafter > 0 and self._rows_cost_too_much(value):",
        "if False:",
        ("tests/draft/test_adaptive_draft.py",),
    ),
    swap(
        "a step that was held up counts in full",
        "policies/speculation/step_cost.py",
        "ratio = min(max(ratio, before / tuning.step_limit), before * tuning.step_limit)",
        "pass",
        ("tests/policies/test_length.py",),
    ),
    swap(
        "drafted thoughts do not count",
        "engine/sampling/thinking.py",
        "state = self._step(self._after(tokens, drafted[:-1]), drafted[-1])",
        "state = self._after(tokens, drafted[:-1])",
        BUDGETS,
    ),
    swap(
        "a thought is closed one token late",
        "policies/thinking_budget.py",
        "thought.spent >= self._most:",
        "thought.spent > self._most:",
        BUDGETS,
    ),
    swap(
        "the closing phrase is said twice",
        "engine/sampling/thinking.py",
        "said=state.said or forced)",
        "said=False)",
        ("tests/engine/sampling/test_thinking.py",),
    ),
    swap(
        "the closing phrase counts as thought",
        "engine/sampling/thinking.py",
        "counted = state.thinking and not forced",
        "counted = state.thinking",
        ("tests/engine/sampling/test_thinking.py",),
    ),
    swap(
        "a forced token is not forced where only the best is wanted",
        "engine/sampling/probs.py",
        "return OneHot(best) if forced is None else forced",
        "return OneHot(best)",
        BUDGETS,
    ),
    swap(
        "a line is kept where the budget forced another token",
        "engine/sampling/probs.py",
        "if not isinstance(decided, OneHot) or isinstance(forced, OneHot):",
        "if not isinstance(decided, OneHot):",
        ("tests/engine/sampling/test_accept_stepwise.py",),
    ),
    swap(
        "a soft budget is not seen where only the best is wanted",
        "engine/sampling/probs.py",
        "and (request.thinking is None or not request.thinking.lifts(request.tokens))",
        "and True",
        BUDGETS,
    ),
    swap(
        "the closing tag is lifted by what is committed only",
        "engine/sampling/thinking.py",
        "by = self._policy.lift(state.spent)",
        "by = self._policy.lift(self._state.spent)",
        ("tests/engine/sampling/test_thinking_probs.py",),
    ),
    swap(
        "a thought that the answer opens has a token more",
        "engine/sampling/thinking.py",
        "spent=state.spent - inside,",
        "spent=state.spent - inside - 1,",
        BUDGETS,
    ),
    swap(
        "thinking off does not close thoughts",
        "fastslow/request/answer_rules.py",
        "if most is None and self._inputs.silences(mode) and prompt.chat:",
        "if most is None and self._inputs.silences(mode) and not prompt.chat:",
        ("tests/fastslow/test_llm_thinking.py",),
    ),
    swap(
        "a model that cannot do without a thought is denied one",
        "fastslow/request/input_processor.py",
        'return mode.thinking == "off" and not self.switch.lessens',
        'return mode.thinking == "off"',
        ("tests/fastslow/test_llm_families.py",),
    ),
    swap(
        "the least effort is the most",
        "engine/text/switches.py",
        "self.levels[-1 if on else 0]",
        "self.levels[-1]",
        ("tests/engine/text/test_text_switches.py",),
    ),
    swap(
        "a word that is only left out is a switch",
        "engine/text/switches.py",
        "ways = plain, plain.replace",
        "ways = plain.replace(SAID, said), plain.replace",
        ("tests/engine/text/test_text_switches.py",),
    ),
    swap(
        "commentary is the answer",
        "engine/text/thought.py",
        'not in ([], ["final"])',
        '== ["analysis"]',
        ("tests/engine/text/test_text_channels.py",),
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
    swap(
        "an unsure run is not cut",
        "engine/core/target_probs.py",
        "size = confidence.keeps(values)",
        "size = len(values)",
        ESCALATION,
    ),
    swap(
        "pages of two modes are published",
        "engine/core/scheduler.py",
        "kv_from_previous_mode.length\n            ):\n                self._kv.stop_publishing(request.id)",
        "kv_from_previous_mode.length\n            ):\n                pass",
        ESCALATION,
    ),
    swap(
        "a chunk runs over a change of groups",
        "engine/core/request.py",
        "return self.kv_from_previous_mode.length - self.computed",
        "return self.pending",
        ESCALATION,
    ),
    swap(
        "kept rows are computed again under the new groups",
        "engine/core/layout.py",
        "groups=request.current_groups,",
        "groups=request.groups,",
        ESCALATION,
    ),
    swap(
        "a stream tells of an answer that is dropped",
        "fastslow/request/choice.py",
        "if self.streaming and not unsure:",
        "if self.streaming:",
        ESCALATION,
    ),
    swap(
        "a request runs past its deadline",
        "engine/core/engine_core.py",
        "if time.monotonic() >= self._next_deadline:",
        "if time.monotonic() < 0:",
        ("tests/fastslow/test_handle.py",),
    ),
    swap(
        "a task that is cancelled leaves its request running",
        "fastslow/request/group.py",
        "except BaseException:  # the task is cancelled, or its loop is gone",
        "except ValueError:",
        ("tests/fastslow/test_handle.py",),
    ),
    swap(
        "a stream that is dropped goes on",
        "fastslow/request/handle.py",
        '        if hasattr(self, "_group"):  # else it was never made\n            self.close()',
        "        pass",
        ("tests/fastslow/test_handle.py", "tests/fastslow/test_llm.py"),
    ),
    swap(
        "a request that was skipped long enough waits on",
        "engine/core/latency_budget.py",
        "return max(fits, min(rows, LEAST))",
        "return fits",
        ("tests/engine/core/test_targets.py",),
    ),
    swap(
        "prompts with a target wait behind others",
        "engine/core/scheduler.py",
        "return int(request.latency_target is None), request.pending > 1, request.priority",
        "return 0, request.pending > 1, request.priority",
        ("tests/engine/core/test_targets.py",),
    ),
    swap(
        "prompts of one token overtake all others",
        "engine/core/scheduler.py",
        "request = min(self.waiting, key=_waiting_rank)",
        "request = min(self.waiting, key=_running_rank)",
        ("tests/engine/core/test_targets.py",),
    ),
    swap(
        "the most urgent request loses its pages",
        "engine/core/scheduler.py",
        "victim = max(beside, key=lambda r: (r.priority, r.arrival))",
        "victim = max(beside, key=_age)",
        ("tests/engine/core/test_priority.py",),
    ),
    swap(
        "a request of low priority waits for ever",
        "engine/core/scheduler.py",
        "oldest.priority = FIRST",
        "pass",
        ("tests/engine/core/test_priority.py",),
    ),
    swap(
        "priority ignored where places are free",
        "engine/core/scheduler.py",
        "return int(request.latency_target is None), request.pending > 1, request.priority",
        "return int(request.latency_target is None), request.pending > 1, 0",
        ("tests/engine/core/test_priority.py",),
    ),
    swap(
        "priority lost on the way to the engine",
        "fastslow/request/builder.py",
        "priority=options.priority,",
        "priority=0,",
        ("tests/serve/test_engine_protocol.py",),
    ),
    swap(
        "a prediction drafted from inside the thought",
        "draft/prediction.py",
        "if thinking is not None and thinking.inside(request.tokens):",
        "if thinking is not None and not request.tokens:",
        ("tests/fastslow/test_prediction.py",),
    ),
    swap(
        "a grammar's mask ignored",
        "engine/sampling/probs.py",
        "mask = None if request.grammar is None else request.grammar.at(request.tokens, drafted)",
        "mask = None",
        ("tests/engine/core/test_grammar_exact.py",),
    ),
    swap(
        "a grammar begins inside the thought",
        "engine/sampling/grammar.py",
        "self._state = _Progress(start.first)",
        "self._state = _Progress(None)",
        ("tests/engine/sampling/test_grammar.py",),
    ),
    swap(
        "a cache salt shared by all keys",
        "serve/api/limits.py",
        'return _derived(self.memory_key or OPEN, "salt", cache_salt)',
        'return _derived(OPEN, "salt", cache_salt)',
        ("tests/serve/test_caller.py",),
    ),
    swap(
        "a cache salt ignored",
        "serve/api/fields.py",
        "who.memory(self.cache_salt)",
        "who.memory(None)",
        ("tests/serve/test_warm.py::test_the_first_request_of_every_caller_finds_it[local]",),
    ),
    swap(
        "pieces of n answers with one index",
        "fastslow/request/choice.py",
        "logprobs, self._index, sources, decided)",
        "logprobs, 0, sources, decided)",
        ("tests/fastslow/test_handle.py",),
    ),
    swap(
        "a continued answer draws its latest token again",
        "engine/core/engine_core.py",
        "result.accepted_nodes[b], result.tokens[b] = [], [token]",
        "pass",
        ("tests/engine/core/test_continued.py",),
    ),
    swap(
        "log-probabilities of a continued answer begin behind the prefix cache",
        "engine/core/scheduler.py",
        "most = min(most, request.prompt_length - 1)",
        "pass",
        ("tests/engine/core/test_continued.py",),
    ),
    swap(
        "a continued answer is not looked at for stops",
        "fastslow/request/resume.py",
        "kept = request.stopper.scan(text)",
        "kept = 0",
        ("tests/engine/core/test_continued.py",),
    ),
    swap(
        "a continued answer's mode is chosen again",
        "fastslow/request/mode.py",
        "if decided is not None:",
        "if False:",
        ("tests/fastslow/test_answered.py",),
    ),
    swap(
        "what was sent is sent again",
        "serve/engines/sent_pieces.py",
        "return text[max(0, known) :]",
        "return text",
        ("tests/serve/test_continued_engine.py",),
    ),
    swap(
        "a closing engine cuts answers that another one would go on with",
        "serve/engines/local.py",
        "if cut and ask.whole and",
        "if False and",
        ("tests/serve/test_continued_answers.py",),
    ),
    swap(
        "a full queue takes more",
        "fastslow/admission.py",
        "if missing > 0:",
        "if missing > 10**6:",
        ("tests/fastslow/test_async_llm.py",),
    ),
    swap(
        "a busy server says nothing of when to come back",
        "serve/api/errors.py",
        '"busy", error.retry_after)',
        '"busy", SOON)',
        ("tests/serve/test_streams.py",),
    ),
    swap(
        "what is asked behind a pinned prefix is everybody's",
        "engine/core/request.py",
        "return groups, self.rope_length, self.memory_key",
        "return groups, self.rope_length, None",
        ("tests/fastslow/test_pin.py",),
    ),
    swap(
        "a usual pin is open to every key",
        "fastslow/request/pin.py",
        "opened = for_all if every_key else None",
        "opened = for_all",
        ("tests/fastslow/test_pin.py",),
    ),
    swap(
        "pages behind other pages of their text are shared",
        "engine/kv/prefix.py",
        "if page is None or self._parent_of[page] != (pages[-1] if pages else -1):",
        "if page is None:",
        ("tests/engine/kv/test_kv_for_all.py",),
    ),
    swap(
        "a second answer is drawn as the first was",
        "engine/sampling/rng.py",
        "return int(words[0]) >> 1\n\n\ndef draw",
        "return seed\n\n\ndef draw",
        ESCALATION,
    ),
    swap(
        "a draft model's pages do not know their rotary base",
        "draft/model/kv.py",
        "return self.groups, self.rope_length, self.request.memory_key",
        "return self.groups, 0, self.request.memory_key",
        ("tests/engine/kv/test_prefix_root.py",),
    ),
    swap(
        "answers are remembered for everybody",
        "draft/suffix/draft.py",
        "self._memory.of(request.memory_key)",
        "self._memory.of(None)",
        ("tests/draft/test_suffix_draft.py",),
    ),
    swap(
        "a target cuts its own draft unasked",
        "engine/core/latency_budget.py",
        "if request.latency_target is not None and not request.may_cut_draft:",
        "if False:",
        ("tests/engine/core/test_targets.py",),
    ),
    swap(
        "a step is kept though one before it was refused",
        "engine/sampling/accept/lossy.py",
        "kept = node.alive and",
        "kept =",
        ("tests/engine/sampling/test_accept_stepwise.py",),
    ),
    swap(
        "a prompt's rows stand one place off",
        "draft/head/draft.py",
        "parts.append(features[end - sizes[-1] : end])",
        "parts.append(features[end - sizes[-1] : end].roll(1, 0))",
        PROMPTS,
    ),
    swap(
        "each prompt token goes with its own row",
        "draft/head/draft.py",
        "request.tokens[first + 1 : some.stop + 1]",
        "request.tokens[first : some.stop]",
        PROMPTS,
    ),
    swap(
        "features of the verified rows from where their logits are",
        "engine/core/layout.py",
        "verify_seen.append(looks + len(seen))",
        "verify_seen.append(looks)",
        ("tests/draft/test_head_engine.py", *PROMPTS),
    ),
    swap(
        "a prompt is dropped where rows wait",
        "draft/head/draft.py",
        "                self._flush(state)\n            state.features.append(own)",
        "                self.release([request.id])\n                state = self._state_at(request, first)\n"
        "            state.features.append(own)",
        PROMPTS,
    ),
    swap(
        "drafting from a row that was only read",
        "draft/head/draft.py",
        "state.can_draft and state.end ==",
        "state.end ==",
        PROMPTS,
    ),
    swap(
        "a chain in training forgets the prompt",
        "tools/train_head/unroll.py",
        "tril(before - step)",
        "tril(-step)",
        ("tests/draft/test_head.py",),
    ),
    swap(
        "a prompt's places begin where the answer's do",
        "tools/train_head/batches.py",
        "torch.arange(-features.shape[1], 0)",
        "torch.arange(features.shape[1])",
        PROMPTS,
    ),
    swap(
        "kernels write the features of wanted logits",
        "engine/backends/cpu/decoder.py",
        "seen = len(contexts), rows.feature_rows if features else rows.feature_rows[:0]",
        "seen = len(contexts), rows.outputs if features else rows.feature_rows[:0]",
        ("tests/engine/model/test_model.py::test_features_of_rows_without_logits", *PROMPTS),
    ),
    swap(
        "a selector's means are forgotten",
        "policies/auto.py",
        "weight * (seen[name] - self.means.get(name, 0.0))",
        "weight * seen[name]",
        ("tests/policies/test_auto.py",),
    ),
    swap(
        "a fold tests what it was fitted to",
        "tools/tune/selector.py",
        "            fitted = fit(features_NF[others], wanted_N[others], weights_N[others])",
        "            fitted = fit(features_NF, wanted_N, weights_N)",
        ("tests/tools/test_tune_selector.py",),
    ),
    swap(
        "smoothing folded on one side",
        "tools/quantize/smooth.py",
        'tensors[f"{name}.weight"] * columns',
        'tensors[f"{name}.weight"]',
        QUANTISED,
    ),
    swap(
        "only the first reader's demand",
        "tools/quantize/smooth.py",
        "torch.stack(demands).amax(0)",
        "demands[0]",
        QUANTISED,
    ),
    swap(
        "a gate aligned at any price",
        "tools/quantize/quantize_layer.py",
        "if found > after:",
        "if found >= 0:",
        QUANTISED,
    ),
    swap(
        "calibration keeps every text",
        "tools/quantize/calibration.py",
        "bool((short & (counts > 0)).any())",
        "True",
        QUANTISED,
    ),
    swap(
        "rounding errors carried on with the wrong sign",
        "tools/quantize/quantize_layer.py",
        "block[i + 1 :] -= factor",
        "block[i + 1 :] += factor",
        QUANTISED,
    ),
    swap(
        "a simulated prompt read without regard to a target",
        "tools/simulate/step.py",
        "if self.limit is None or answer.target is not None or self.left <= 0:",
        "if True:",
        SIMULATED,
    ),
    swap(
        "a simulated replica's cache never evicted",
        "tools/simulate/replica.py",
        "self._cache.evict(math.ceil(need + self._cache.idle - self._costs.pages))",
        "pass",
        SIMULATED,
    ),
    swap(
        "simulated replicas of a machine do not slow each other",
        "tools/simulate/replica.py",
        "step.seconds * self._costs.slowed(self._others())",
        "step.seconds",
        SIMULATED,
    ),
    swap(
        "a simulated request that lost its pages starts from nothing",
        "tools/simulate/replica.py",
        "victim.made = math.floor(victim.made + 1e-9)",
        "victim.made = 0.0",
        SIMULATED,
    ),
    swap(
        "a cached prefix read again in a simulation",
        "tools/simulate/replica.py",
        "held, need, length - cached",
        "held, need, length",
        SIMULATED,
    ),
    swap(
        "a static input's offset forgotten",
        "engine/checkpoint/quantised.py",
        " + offset * weight.double().sum(-1)",
        " + 0 * offset",
        QUANT_FILES,
    ),
    swap(
        "int8 outputs in the wrong order of scales",
        "engine/backends/cpu/pieces.py",
        "scales = _ordered(matrix.scale_O.numpy(), self.order)",
        "scales = _ordered(matrix.scale_O.numpy()[::-1].copy(), self.order)",
        QUANT_FILES,
    ),
    swap(
        "int8 values without their scales",
        "engine/backends/cpu/kernels/score_int8.h",
        "load<vf>(scores + k) * load<vf>(scales + k)",
        "load<vf>(scores + k)",
        INT8_KV,
    ),
    swap(
        "moved int8 rows leave their scales behind",
        "engine/backends/cpu/kv.py",
        "self._scales()[:, tiles, :, :, lanes] = scales.permute(2, 1, 3, 0)",
        "self._scales()",
        INT8_KV,
    ),
    swap(
        "4-bit blocks of any shape are taken",
        "engine/checkpoint/checkpoint.py",
        'file.get_slice(name), Expected((shape,), ("U8",))',
        'file.get_slice(name), Expected((tuple(file.get_slice(name).get_shape()),), ("U8",))',
        LOADER,
    ),
    swap(
        "the work of a living process is swept",
        "engine/host/unfinished.py",
        "        if not _take(lock, handle):",
        "        if _take(lock, handle) is None:",
        UNFINISHED,
    ),
    swap(
        "what another machine makes is swept",
        "engine/host/unfinished.py",
        'ours = os.read(handle, 64) == _boot() != b""',
        "ours = True",
        UNFINISHED,
    ),
    swap(
        "tensors of a GGUF file may overlap",
        "engine/host/gguf_file.py",
        "if begin < end:",
        "if begin < 0:",
        GGUF,
    ),
    swap(
        "a shipped head for any model of its width",
        "draft/head/runner.py",
        "fitting.get(fingerprint(target)) if fitting else None",
        "next(iter(fitting.values()), None)",
        SHIPPED_HEAD,
    ),
    swap(
        "a file's numbers keep what their zero adds",
        "engine/backends/cpu/kernels/file_kernel.h",
        "return less << Form::ZERO;",
        "return less;",
        GGUF_FORMATS,
    ),
    swap(
        "the second half of a Q6_K block has the first's scale",
        "engine/backends/cpu/kernels/file_kernel.h",
        "scales.d[b * PARTS + i * PARTS / BLOCK][output]",
        "scales.d[b * PARTS][output]",
        GGUF_FORMATS,
    ),
    swap(
        "values are read as if they were in the keys' format",
        "engine/backends/cpu/decoder.py",
        "found[name] = library.CMatrix(tiles, bias, run.format,",
        "found[name] = library.CMatrix(tiles, bias, piece.runs[1].format,",
        GGUF_FORMATS,
    ),
    swap(
        "a row of zeros is the file's first",
        "engine/backends/cpu/library.py",
        "np.where(order < 0, 0, rows[order])",
        "rows[np.maximum(order, 0)]",
        GGUF_FORMATS,
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

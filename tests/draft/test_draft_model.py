"""Drafting models on their own: long prompts read in pieces, devices, broken logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import stub
from engine_tools import cache_for
from head_tools import View

from fastslow.draft.model.draft import READ_ROWS, ModelDraft
from fastslow.draft.model.kv import OwnKV
from fastslow.draft.model.vocab import PaddedTokens, VocabMap
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens
from fastslow.engine.params import SamplingParams
from fastslow.engine.rows import Rows
from fastslow.engine.types import ModelOutput

VOCAB = 7
TEXT = [3, 4, 5, 3, 6]


def after(state: int, token: int, position: int) -> int:
    """Add one more row to the digest of all that a row has read."""
    return (state * 31 + token * 7 + position * 3 + 1) % 1_000_003


def logits_of(state: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(state).normal(size=VOCAB) * 2).float()


class Digest:
    """Writes (token, position) as a row's key; its logits depend on every key that the row reads."""

    dtype = torch.float32
    storage = KVStorage

    def __init__(self, context: int = 4096) -> None:
        self.device = torch.device("cpu")
        self.config = stub("digest", VOCAB, 2, context)
        self.forwards: list[int] = []  # rows of each
        self.wanted_less = False  # whether some row wanted only its best token
        self.broken: set[int] = set()  # forwards whose first logits are no numbers

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        states: list[int] = []
        for b, context in enumerate(rows.contexts):
            before = 0
            for key in kv.k[0][torch.from_numpy(context), 0].tolist():
                before = after(before, *map(int, key))
            for i in range(int(rows.starts[b]), int(rows.starts[b + 1])):
                parent = int(rows.parents[i])
                above = before if parent < 0 else states[int(rows.starts[b]) + parent]
                states.append(after(above, int(rows.tokens[i]), int(rows.positions[i])))
        assert len(set(rows.slots.tolist())) == len(rows.slots), "rows that share a slot"
        keys = np.stack([rows.tokens, rows.positions], axis=1)
        kv.k[0][torch.from_numpy(rows.slots), 0] = torch.from_numpy(keys).float()
        logits_MV = torch.stack([logits_of(states[row]) for row in rows.outputs] or [torch.zeros(VOCAB)])
        self.wanted_less |= bool(rows.only_best.any())
        if len(self.forwards) in self.broken:
            logits_MV[0] = torch.nan
        self.forwards.append(len(rows.tokens))
        kept = logits_MV[: len(rows.outputs)]
        return ModelOutput(kept, None, best_tokens(kept, rows.only_best))


def next_logits(text: Sequence[int]) -> torch.Tensor:
    state = 0
    for place, token in enumerate(text):
        state = after(state, token, place)
    return logits_of(state)


def next_probs(text: Sequence[int], temperature: float = 1.0) -> list[float]:
    return torch.softmax(next_logits(text).double() / temperature, dim=-1).tolist()


def best_after(text: Sequence[int], count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(int(next_logits([*text, *found]).argmax()))
    return found


def request(tokens: Sequence[int], number: int = 0, **params: Any) -> Any:
    return View(number, tokens, prompt_length=1, params=SamplingParams(**params), max_len=4000)


def test_chosen_and_sampled_chains_share_a_batch() -> None:
    model: Any = Digest()
    drafter = ModelDraft(model, OwnKV(cache_for(model, 64)))
    batch = [request(TEXT, 0), request(TEXT, 1, temperature=1.2), request(TEXT, 2)]
    chosen, chain, nothing = drafter.propose(batch, [5, 4, 0])
    assert list(chosen.tokens) == best_after(TEXT, 5) and chosen.probs is None
    assert list(chain.parents) == [-1, 0, 1, 2] and chain.probs is not None
    for i, probs in enumerate(chain.probs):
        assert probs == pytest.approx(next_probs([*TEXT, *chain.tokens[:i]], 1.2), abs=1e-5)
    assert not nothing.tokens


def test_a_chain_goes_on_from_what_was_accepted() -> None:
    model: Any = Digest()
    kv = cache_for(model, 40, page_size=2)
    drafter = ModelDraft(model, OwnKV(kv))
    text = list(TEXT)
    for turn in range(6):
        before = len(model.forwards)
        tree = drafter.propose([request(text)], [4])[0]
        kv.check_integrity()
        assert list(tree.tokens) == best_after(text, 4)
        assert model.forwards[before] == (1 if turn else len(TEXT)), "the text is not read again"
        text += [*tree.tokens[: turn % 3], 3]
    drafter.release([0])
    assert not kv.requests


def test_broken_logits_end_one_draft_only() -> None:
    model: Any = Digest()
    drafter = ModelDraft(model, OwnKV(cache_for(model, 64)))
    batch = [request(TEXT, 0), request([5, 5], 1)]
    whole = drafter.propose(batch, [5, 5])
    drafter.release([0, 1])
    model.broken = {len(model.forwards) + 1}
    cut = drafter.propose(batch, [5, 5])
    assert cut[1].tokens == whole[1].tokens and cut[0].tokens == whole[0].tokens[:1]


def test_best_tokens_alone_make_the_same_chains() -> None:
    drafts = []
    for vocab_map in (VocabMap(), None):  # a map takes all logits
        model: Any = Digest()
        drafter = ModelDraft(model, OwnKV(cache_for(model, 64)), vocab_map=vocab_map)
        batch = [request(TEXT, 0), request(TEXT, 1, logit_bias={1: -50.0}), request([6], 2)]
        drafts.append(drafter.propose(batch, [4, 4, 4]))
        model.broken = {len(model.forwards)}
        drafter.release([0, 1, 2])
        cut = drafter.propose(batch, [4, 4, 4])
        assert not cut[0].tokens and len(cut[1].tokens) == 4 and model.wanted_less == (vocab_map is None)
    plain, fast = drafts
    assert [tree.tokens for tree in plain] == [tree.tokens for tree in fast]
    assert plain[0].tokens != plain[1].tokens


def test_long_prompts_are_read_in_pieces() -> None:
    prompts = [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in (1300, 3, 700)]
    model: Any = Digest()
    kv = cache_for(model, 200, page_size=16)
    drafter = ModelDraft(model, OwnKV(kv))
    trees = drafter.propose([request(p, n) for n, p in enumerate(prompts)], [3, 3, 3])
    assert max(model.forwards) <= READ_ROWS == 512
    assert sum(model.forwards) == 1300 + 3 + 700 + 2 * 3, "every token once"
    for prompt, tree in zip(prompts, trees):
        assert list(tree.tokens) == best_after(prompt, 3)
    kv.check_integrity()


@pytest.mark.parametrize("columns", [5, 12])
def test_a_vocabulary_of_other_padding_drafts_the_same_tokens(columns: int) -> None:
    """Five tokens are in both; the model has VOCAB of them, the target `columns`."""
    model: Any = Digest()
    text = [3, 4, 1, 3]
    kv, padded = OwnKV(cache_for(model)), PaddedTokens(VOCAB, columns)
    drafter = ModelDraft(model, kv, vocab_map=padded)
    wanted = [request(text), request([*text, columns - 1], 1)]
    chosen, unread, drawn = drafter.propose([*wanted, request(text, 2, temperature=1.0)], [4, 4, 4])
    assert len(chosen.tokens) == 4 and max(chosen.tokens) < min(columns, VOCAB)
    best = next_logits(text)[: min(columns, VOCAB)].argmax()
    assert chosen.tokens[0] == best
    assert bool(unread.tokens) == (columns - 1 < VOCAB), "a token that the model does not have"
    assert drawn.probs is not None and drawn.probs.shape == (len(drawn.tokens), columns)
    assert not drawn.probs[:, VOCAB:].any()
    kept = next_logits(text)[:columns].double()
    assert np.allclose(drawn.probs[0, : len(kept)], torch.softmax(kept, 0).numpy(), atol=1e-6)
    drafter.release([0, 1, 2])


def test_a_full_context_is_not_drafted_for_and_a_batch_takes_one_forward_a_token() -> None:
    model: Any = Digest(context=8)
    drafter = ModelDraft(model, OwnKV(cache_for(model, 64)))
    trees = drafter.propose([request(TEXT, 0), request(TEXT, 1)], [3, 4])
    assert len(trees[0].tokens) == 3 and not trees[1].tokens
    model = Digest()
    drafter = ModelDraft(model, OwnKV(cache_for(model, 64)))
    drafter.propose([request(TEXT, n) for n in range(4)], [2, 3, 1, 3])
    assert model.forwards == [20, 3, 2]

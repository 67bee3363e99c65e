"""Drafting with another tokenizer: tokens that both have, marks, and what the draft model reads of the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import stub
from engine_tools import cache_for
from head_tools import View
from spellings import Pieces
from tokenizers_tiny import SENTENCES, write_bpe, write_spm

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import OwnKV
from fastslow.draft.model.vocab import SharedTokens, special_map
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens
from fastslow.engine.params import SamplingParams
from fastslow.engine.rows import Rows
from fastslow.engine.sampling.probs import probs_at
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import ModelOutput

STORY = " ".join(SENTENCES)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """`small` has the bytes and marks of `bpe` and fewer merges."""
    folder = tmp_path_factory.mktemp("texts")
    for name, size in (("bpe", 400), ("small", 300), ("spm", 600)):
        (folder / name).mkdir()
        (write_spm if name == "spm" else write_bpe)(folder / name, vocab_size=size)
    return {path.name: load_tokenizer(path) for path in folder.iterdir()}


def request(tokens: Sequence[int], number: int = 0, **params: Any) -> Any:
    return View(number, tokens, prompt_length=1, params=SamplingParams(**params), max_len=200)


def text_of(tokenizer: Any, ids: Sequence[int]) -> bytes:
    return b"".join(tokenizer.token_bytes(x) for x in ids if x not in tokenizer.special_ids)


@pytest.mark.parametrize("pair", [("bpe", "spm"), ("spm", "bpe"), ("bpe", "small")], ids=str)
def test_what_the_draft_model_reads_is_the_same_text(pair: tuple[str, str], texts: dict[str, Tokenizer]) -> None:
    """However it is cut, also inside a character."""
    target, own = (texts[name] for name in pair)
    ids = target.encode(STORY, add_special=False)
    shared, asked = SharedTokens(target, own, target.vocab_size), request([])
    for stop in range(1, len(ids) + 1, 3):
        asked.tokens += ids[len(asked.tokens) : stop]
        assert text_of(own, shared.text(asked)) == text_of(target, asked.tokens)


def test_marks_keep_their_meaning() -> None:
    marks = ["<s>", "<user>", "<end>", "<x>"]
    target = Pieces([*marks, "a", "b"], marks, "<s>", "<end>")
    marks = ["<eos>", "<user>", "<bos>"]
    own = Pieces(["b", "a", *marks], marks, "<bos>", "<eos>", True)
    assert special_map(target, own) == {0: 4, 1: 3, 2: 2} and special_map(own, target) == {4: 0, 3: 1, 2: 2}
    text = [0, 1, 4, 5, 3, 5, 2, 4]
    shared = SharedTokens(target, own, 6)
    # one beginning, and nothing for <x>
    assert list(shared.text(request(text))) == [4, 3, 1, 0, 0, 2, 1]
    assert list(shared.text(request(text[1:], 1)))[:2] == [4, 3], "its own beginning, if none came"


class Speaker:
    """A draft model that says a fixed text from where its keys say that it is; keeps what it read."""

    dtype = torch.float32
    device = torch.device("cpu")
    storage = KVStorage

    def __init__(self, tokenizer: Any, says: Sequence[int], context: int = 512) -> None:
        self.config = stub("speaker", tokenizer.vocab_size + 5, 2, context)
        self.says = list(says)
        self.read: list[list[int]] = []

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        logits_MV = torch.zeros(len(rows.outputs), self.config.vocab_size)
        logits_MV[:, -2] = 9.0  # of no token
        (context,) = rows.contexts
        kv.k[0][torch.from_numpy(rows.slots), 0, 0] = torch.from_numpy(rows.tokens).float()
        before = kv.k[0][torch.from_numpy(context), 0, 0].long().tolist()
        self.read.append(rows.tokens.tolist())
        text = [*before, *rows.tokens.tolist()]
        said = max(n for n in range(len(self.says) + 1) if text[len(text) - n :] == self.says[:n])
        logits_MV[:, [*self.says, 0][said]] = 5.0
        return ModelOutput(logits_MV, None, best_tokens(logits_MV, rows.only_best))


def test_tokens_in_common_are_drafted_end_to_end(texts: dict[str, Tokenizer]) -> None:
    """bpe continues a text whose tokens small cuts elsewhere, until a token that small lacks."""
    bpe, small = texts["bpe"], texts["small"]
    begun, rest = "Every expert answers", " when its group is asked, and the router decides."
    model: Any = Speaker(small, small.encode_exactly(rest) or [])
    kv = cache_for(model, 64)
    drafter = ModelDraft(model, OwnKV(kv), vocab_map=SharedTokens(bpe, small, bpe.vocab_size))
    want, said = bpe.encode(rest, add_special=False), list[int]()
    asked = request(bpe.encode(begun, add_special=False))
    right = 0
    while len(said) < len(want):
        found = list(drafter.propose([asked], [4])[0].tokens)
        left = want[len(said) :]
        kept = next((n for n, (a, b) in enumerate(zip(found, left)) if a != b), min(len(found), len(left)))
        right += kept
        asked.tokens += left[: kept + 1]
        said += left[: kept + 1]
        kv.check_integrity()
    assert right >= 6 and max(len(read) for read in model.read[1:]) <= 4, "what was read stays read"
    drafter.release([0])
    assert not kv.requests


def test_texts_that_the_draft_model_cannot_read_or_go_on_with() -> None:
    target, own, strange = Pieces(["<x>", "a"], ["<x>"]), Pieces(["a", "b"]), Pieces(["b", "c"])
    for theirs, text in ((own, [0, 0]), (strange, [1, 1])):
        model: Any = Speaker(theirs, [0, 1])
        drafter = ModelDraft(model, OwnKV(cache_for(model)), vocab_map=SharedTokens(target, theirs, 2))
        assert not drafter.propose([request(text)], [3])[0].tokens


def test_the_law_of_tokens_in_common() -> None:
    target = Pieces(["a", "b", "cd", "c", "d"])
    own = Pieces(["d", "e", "a", "b"])
    shared = SharedTokens(target, own, 7)
    logits = torch.tensor([[1.0, 9.0, 2.0, 3.0, 8.0]])  # a column more than it has tokens
    probs = probs_at(shared.logits(logits)[0], request([0], temperature=1.0), [])
    assert isinstance(probs, np.ndarray) and len(probs) == 7
    plain = torch.softmax(torch.tensor([2.0, 3.0, 1.0]), 0).numpy()
    assert probs[[0, 1, 4]] == pytest.approx(plain, abs=1e-6)
    assert not probs[[2, 3, 5, 6]].any(), "never what the draft model cannot say"
    assert [shared.token(x) for x in (0, 1, 4)] == [2, 3, 0]
    asked = request([0, 2, 4])
    assert list(shared.text(asked)) == [2, 0], "of cd it reads what it can"
    asked.tokens.append(1)
    assert list(shared.text(asked)) == [2, 0, 3]
    shared.release([0, 5])
    assert not shared._texts

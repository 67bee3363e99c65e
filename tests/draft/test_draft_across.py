"""Drafting with another tokenizer: characters cut in half, marks, tokens of another length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import stub
from engine_tools import cache_for
from head_tools import View
from recurrent_model import RecurrentModel
from spellings import Pieces, letters
from tokenizers_tiny import SENTENCES, write_bpe, write_spm

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import OwnKV
from fastslow.draft.model.retokenized import (
    MAX_TAIL,
    DraftRetokenizer,
    RetokenizedDraft,
    TextRetokenizer,
    begins_inside_character,
    model_draft_across,
)
from fastslow.draft.model.vocab import ByteVocab, SharedTokens, overlap, special_map, split_utf8
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens, kv_cache_for
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


@pytest.fixture
def bpe(texts: dict[str, Tokenizer]) -> Tokenizer:
    return texts["bpe"]


@pytest.fixture
def spm(texts: dict[str, Tokenizer]) -> Tokenizer:
    return texts["spm"]


def request(tokens: Sequence[int], number: int = 0, **params: Any) -> Any:
    return View(number, tokens, prompt_length=1, params=SamplingParams(**params), max_len=200)


def text_of(tokenizer: Any, ids: Sequence[int]) -> bytes:
    return b"".join(tokenizer.token_bytes(x) for x in ids if x not in tokenizer.special_ids)


@pytest.mark.parametrize("pair", [("bpe", "spm"), ("spm", "bpe"), ("bpe", "small")], ids=str)
def test_a_followed_text_is_the_same_text(pair: tuple[str, str], texts: dict[str, Tokenizer]) -> None:
    target, own = (texts[name] for name in pair)
    ids = target.encode(STORY * 3, add_special=False)
    retokenizer = TextRetokenizer(target, ByteVocab(own), special_map(target, own))
    cut = settled = 0
    before: list[int] = []
    for stop in range(1, len(ids) + 1, 3):
        read = retokenizer.update(ids[:stop])
        said = text_of(target, ids[:stop]).lstrip(b" ")
        assert text_of(own, read).lstrip(b" ") + retokenizer.partial == said
        assert read[:settled] == before[:settled], "what is settled stays"
        cut += bool(retokenizer.partial)
        before, settled = read, retokenizer.settled
        assert len(read) - settled <= MAX_TAIL
    assert cut > 0 or pair == ("spm", "bpe"), "some text must end inside a character"
    assert settled > len(before) / 2
    plain = own.encode(STORY * 3)
    alike = sum(a == b for a, b in zip(before, plain)) / len(plain)
    assert alike > 0.95, "read as the draft model would read it, not piece by piece"


def test_marks_keep_their_meaning() -> None:
    marks = ["<s>", "<user>", "<end>", "<x>"]
    target = Pieces([*marks, "a", "b"], marks, "<s>", "<end>")
    marks = ["<eos>", "<user>", "<bos>"]
    own = Pieces(["b", "a", *marks], marks, "<bos>", "<eos>", True)
    assert special_map(target, own) == {0: 4, 1: 3, 2: 2} and special_map(own, target) == {4: 0, 3: 1, 2: 2}
    text = [0, 1, 4, 5, 3, 5, 2, 4]
    read = [4, 3, 1, 0, 0, 2, 1]  # one beginning, and nothing for <x>
    assert TextRetokenizer(target, ByteVocab(own), special_map(target, own)).update(text) == read
    shared = SharedTokens(ByteVocab(target), ByteVocab(own), 6)
    assert list(shared.text(request(text))) == read
    assert list(shared.text(request(text[1:], 1)))[:2] == [4, 3], "its own beginning, if none came"
    retokenizer = DraftRetokenizer(own, ByteVocab(target))
    deaf = DraftRetokenizer(own, ByteVocab(Pieces(["a", "b"])))
    assert retokenizer.encode([1, 0], b"") == ([4, 5], True)
    assert retokenizer.encode([1, 2, 0], b"") == ([4, 2], False), "nothing after the end"
    assert retokenizer.encode([1, 3, 0], b"") == ([4, 1, 5], True)
    assert deaf.encode([1, 3, 0], b"") == ([0], False), "a mark that the target lacks ends it"


def test_what_is_told_again_is_the_same_text(bpe: Tokenizer, spm: Tokenizer) -> None:
    for own, target in ((spm, bpe), (bpe, spm)):
        retokenizer = DraftRetokenizer(own, ByteVocab(target))
        ids = own.encode(STORY, add_special=False)
        for first in range(0, len(ids) - 12, 5):
            said = text_of(own, ids[first : first + 12])
            if not begins_inside_character(said):
                found, more = retokenizer.encode(ids[first : first + 12], b"")
                assert more and text_of(target, found) == split_utf8(said)[0].encode()
    half = ByteVocab(bpe).encode_bytes("界".encode()[:2])
    assert half
    ids = [*bpe.encode("\n", add_special=False), *half]
    found, more = retokenizer.encode(ids, b"")
    assert more and text_of(spm, found) == b"\n", "a draft that ends inside a character"
    broken = [*ids, *bpe.encode("a", add_special=False)]  # what no tokenizer can spell
    assert retokenizer.encode(broken, b"") == ([], False)


def test_a_half_written_character_is_finished(bpe: Tokenizer, spm: Tokenizer) -> None:
    said = "好，go"
    ids = spm.encode(said, add_special=False)
    retokenizer = DraftRetokenizer(spm, ByteVocab(bpe))
    lead = text_of(spm, ids)[: -len(said.encode())]  # a space of the tokenizer's own
    ids = [x for x in ids if text_of(spm, [x]) != lead] if lead else ids
    for size in (1, 2):
        begun = "好".encode()[:size]
        found, more = retokenizer.encode(ids, begun)
        assert more and begun + text_of(bpe, found) == said.encode()
        assert retokenizer.encode(ids, b"\xe4") == ([], False), "another character"
    assert retokenizer.encode([], b"\xe5") == ([], True)


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


def test_other_tokens_end_to_end(bpe: Tokenizer, spm: Tokenizer) -> None:
    """spm continues a text whose tokens bpe cuts elsewhere; what was read stays read."""
    begun, rest = "Every expert answers", " when its group is asked, and the router decides."
    model: Any = Speaker(spm, spm.encode_exactly(rest) or [])
    kv = cache_for(model, 64)
    drafter = RetokenizedDraft(model, OwnKV(kv), bpe, spm)
    want = bpe.encode(rest, add_special=False)
    asked = request(bpe.encode(begun, add_special=False))
    right = 0
    for nodes in (3, 5, 4):
        found = list(drafter.propose([asked], [nodes])[0].tokens)
        assert 0 < len(found) <= nodes
        kept = next((n for n, (a, b) in enumerate(zip(found, want)) if a != b), len(found))
        right += kept
        asked.tokens += want[: kept + 1]
        want = want[kept + 1 :]
        kv.check_integrity()
    assert right >= 6
    # read once, then only what came to it, with a few tokens that were cut anew
    assert len(model.read[0]) == len(spm.encode(begun)) and max(len(read) for read in model.read[1:]) <= 6
    drafter.release([0])
    assert not kv.requests and not drafter._texts


def test_a_recurrent_draft_model_folds_in_what_is_settled(bpe: Tokenizer, spm: Tokenizer) -> None:
    """Tokens that are cut anew later lie beside its states, and these are right bit for bit."""
    model: Any = RecurrentModel()
    kv = kv_cache_for(model, 200, 4)
    drafter = RetokenizedDraft(model, OwnKV(kv), bpe, spm)
    ids, ran = bpe.encode(STORY * 3, add_special=False), list[int]()
    for number, start, step in ((0, 30, 3), (1, 130, 7)):
        for stop in range(start, len(ids), step):
            before = model.run
            drafter.propose([request(ids[:stop], number)], [4])
            ran.append(model.run - before)
            kv.check_integrity()
            assert not model.wrong
        assert kv.valid(number) > len(spm.encode(STORY * 3)) - 50
        drafter.release([number])
    assert max(ran[1:]) < 60, "also where a second text begins as the first did"


def test_no_room_in_the_draft_models_context(bpe: Tokenizer, spm: Tokenizer) -> None:
    model: Any = Speaker(spm, spm.encode(STORY), context=24)
    drafter = RetokenizedDraft(model, OwnKV(cache_for(model, 64)), bpe, spm)
    ids = bpe.encode(STORY, add_special=False)
    drafted = [len(drafter.propose([request(ids[:n], n)], [4])[0].tokens) for n in (4, 30, 60)]
    assert drafted[0] > 0 and drafted[2] == 0 and not drafter.propose([request([0], 9)], [0])[0].tokens


def test_a_request_of_nothing_but_unknown_marks() -> None:
    target, own = Pieces(["<x>", "a"], ["<x>"]), Pieces(["a", "b"])
    model: Any = Speaker(own, [0, 1])
    shared, kvs = SharedTokens(ByteVocab(target), ByteVocab(own), 2), [OwnKV(cache_for(model))] * 2
    for drafter in (
        RetokenizedDraft(model, kvs[0], target, own),
        ModelDraft(model, kvs[1], probs_at, vocab_map=shared),
    ):
        assert not drafter.propose([request([0, 0])], [3])[0].tokens


def test_the_law_of_tokens_in_common() -> None:
    target = Pieces(["a", "b", "cd", "c", "d"])
    own = Pieces(["d", "e", "a", "b"])
    shared = SharedTokens(ByteVocab(target), ByteVocab(own), 7)
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


def test_pairs_choose_their_way(texts: dict[str, Tokenizer]) -> None:
    def across(target: Any, own: Any) -> Any:
        model: Any = Speaker(own, [0])
        return model_draft_across(model, OwnKV(cache_for(model, 4)), probs_at, target, own, target.vocab_size)

    bpe, small, spm = (texts[name] for name in ("bpe", "small", "spm"))
    assert isinstance(across(bpe, bpe), ModelDraft) and isinstance(across(bpe, spm), RetokenizedDraft)
    nearly = Pieces(letters(40)), Pieces([*letters(43)[3:]][::-1])
    assert overlap(ByteVocab(nearly[0]), ByteVocab(nearly[1])) == 37 / 40
    assert isinstance(across(*nearly), ModelDraft)
    assert overlap(ByteVocab(bpe), ByteVocab(small)) < 1 == overlap(ByteVocab(bpe), ByteVocab(bpe))

"""The tokenizer as the engine needs it, and the choice of one for a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from fastslow.engine.host.files import about, is_file
from fastslow.engine.host.gguf_file import is_gguf
from fastslow.engine.host.machine import give_back
from fastslow.engine.text.tokenizer_files.config import GgufVocabulary, read_settings
from fastslow.engine.text.vocabulary import Tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, `tokenizer.json` or `tokenizer.model`, or of a GGUF file. Only data
    is read: no pickle, no code. ValueError if there is none, or if a file is broken."""
    found = _load(Path(folder))
    give_back()  # of a large vocabulary more was made on the way than is kept
    return found


def _load(folder: Path) -> Tokenizer:
    # Imported late: a run needs one of the two libraries.
    if is_gguf(folder):
        with about(folder):
            return _of_gguf(GgufVocabulary.read(folder))
    if is_file(path := folder / "tokenizer.json"):
        from fastslow.engine.text.tokenizer_files.hf import HfTokenizer

        return HfTokenizer.read(path, read_settings(folder))
    if is_file(path := folder / "tokenizer.model"):
        from fastslow.engine.text.tokenizer_files.spm import SpmTokenizer

        return SpmTokenizer.read(path, read_settings(folder))
    raise ValueError(f"{folder} has neither tokenizer.json nor tokenizer.model")


def _of_gguf(vocabulary: GgufVocabulary) -> Tokenizer:
    if vocabulary.model != "llama":
        from fastslow.engine.text.tokenizer_files.hf import HfTokenizer, build_bpe

        return HfTokenizer(build_bpe(vocabulary), vocabulary.settings())
    from fastslow.engine.text.tokenizer_files.spm import SpmTokenizer, build_spm

    try:
        return SpmTokenizer(build_spm(vocabulary), vocabulary.settings())
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"its tokens are no SentencePiece model: {error}") from None


def same_vocabulary(a: Tokenizer, b: Tokenizer) -> str | None:
    """None if both have the same pieces with the same ids, else one sentence that says where they differ."""
    if a.vocab_size != b.vocab_size:
        return f"the vocabularies have {a.vocab_size} and {b.vocab_size} ids"
    for number in range(a.vocab_size):
        if (ours := a.piece(number)) != (theirs := b.piece(number)):
            return f"token id {number} is {ours!r} in one vocabulary, {theirs!r} in the other"
    return None

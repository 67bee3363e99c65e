"""What the engine asks of a tokenizer, and the choice of one for a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from fastslow.engine.host.files import is_file
from fastslow.engine.host.machine import give_back
from fastslow.engine.text.settings import read_settings
from fastslow.engine.text.vocabulary import Tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: `tokenizer.json` if there is one, else the
    SentencePiece `tokenizer.model`. Only data is read: no pickle, no code from the folder.

    Raises ValueError if there is neither, or if a file is broken.
    """
    found = _load(Path(folder))
    give_back()  # of a large vocabulary more was made on the way than is kept
    return found


def _load(folder: Path) -> Tokenizer:
    # Imported late: a run needs one of the two libraries.
    if is_file(path := folder / "tokenizer.json"):
        from fastslow.engine.text.hf import HfTokenizer

        return HfTokenizer(path, read_settings(folder))
    if is_file(path := folder / "tokenizer.model"):
        from fastslow.engine.text.spm import SpmTokenizer

        settings = read_settings(folder)
        try:
            return SpmTokenizer(path, settings)
        except UnicodeDecodeError as error:  # the library reads pieces that are no text
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from None
    raise ValueError(f"{folder} has neither tokenizer.json nor tokenizer.model")


def same_vocabulary(a: Tokenizer, b: Tokenizer) -> str | None:
    """None if both have the same pieces with the same ids, else one sentence that says where they
    differ. A draft model's tokens mean the same to its target only then."""
    if a.vocab_size != b.vocab_size:
        return f"the vocabularies have {a.vocab_size} and {b.vocab_size} ids"
    for number in range(a.vocab_size):
        if (ours := a.piece(number)) != (theirs := b.piece(number)):
            return f"token id {number} is {ours!r} in one vocabulary, {theirs!r} in the other"
    return None

"""A byte-level BPE tokenizer of the `tokenizers` library from a GGUF header.

How each kind splits a text is the pattern in the published tokenizer.json of the models that have it.
"""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.pre_tokenizers import PreTokenizer

from fastslow.engine.host.files import shown
from fastslow.engine.text.gguf import (
    CONTROL,
    LLAMA3,
    PREFIX,
    USER_DEFINED,
    GgufVocabulary,
    texts_of,
)

SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = SHORT_FORMS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT_FORMS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT_FORMS}?"
)
TRIPLES = r"\p{N}{1,3}"
QWEN = ("qwen2", "deepseek-r1-qwen")
PATTERNS = {
    **dict.fromkeys(LLAMA3, f"{WORDS}|{TRIPLES}|{OTHERS}|{SPACES}"),
    **dict.fromkeys(QWEN, rf"{WORDS}|\p{{N}}|{OTHERS}|{SPACES}"),
    "gpt-4o": rf"{CASED}|{TRIPLES}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
}
PLAIN = ("gpt-2", "gpt2", "default")  # as GPT-2 splits
WHOLE_WORDS = (
    *LLAMA3,
    "gpt-4o",
)  # kinds that take a word that is a token without merging its parts


def pre_tokenizer(kind: str) -> PreTokenizer:
    """How a `tokenizer.ggml.pre` splits a text; ValueError for one that is not known."""
    if kind in PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if kind not in PATTERNS:
        known = ", ".join(("smollm", *PATTERNS, *PLAIN))
        raise ValueError(f"{PREFIX}pre {shown(kind)} is not one of the known {known}")
    split = pre_tokenizers.Split(Regex(PATTERNS[kind]), behavior="isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, by_bytes])


def build_bpe(vocabulary: GgufVocabulary) -> Tokenizer:
    """The tokenizer; control tokens are special, and user-defined ones are found in any text.

    Raises:
        ValueError: merges that do not fit the tokens, or a way of splitting that is not known.
    """
    splits = pre_tokenizer(vocabulary.pre)
    merges = []
    for merge in texts_of(vocabulary.fields, "merges"):
        first, space, second = merge.partition(" ")
        if not space:
            raise ValueError(f"{PREFIX}merges: {shown(merge)} must have a space in it")
        merges.append((first, second))
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    whole = vocabulary.pre in WHOLE_WORDS
    try:
        library = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=whole))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ValueError(f"{PREFIX}merges: {error!s:.99}") from None
    if vocabulary.pre in QWEN:
        library.normalizer = normalizers.NFC()
    library.pre_tokenizer = splits
    library.decoder = decoders.ByteLevel()
    _add(library, vocabulary)
    _surround(library, vocabulary)
    return library


def _add(library: Tokenizer, vocabulary: GgufVocabulary) -> None:
    both = list(zip(vocabulary.tokens, vocabulary.types))
    marks = [AddedToken(t, special=True, normalized=False) for t, k in both if k == CONTROL]
    library.add_special_tokens(marks)
    library.add_tokens([AddedToken(t, normalized=False) for t, k in both if k == USER_DEFINED])


def _surround(library: Tokenizer, vocabulary: GgufVocabulary) -> None:
    """What the header puts around a text."""
    bos = vocabulary.id_of("bos_token_id") if vocabulary.add_bos else None
    eos = vocabulary.id_of("eos_token_id") if vocabulary.add_eos else None
    around: list[Any] = [(vocabulary.tokens[n], n) for n in (bos, eos) if n is not None]
    if around:
        before = [] if bos is None else [f"{vocabulary.tokens[bos]}:0"]
        after = [] if eos is None else [f"{vocabulary.tokens[eos]}:0"]
        library.post_processor = processors.TemplateProcessing(
            single=[*before, "$A:0", *after], pair=None, special_tokens=around
        )

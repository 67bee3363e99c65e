"""Tokenizers of the `tokenizers` library: a tokenizer.json, or byte-level BPE from a GGUF header.

How each kind of GGUF splits a text is the pattern in the published tokenizer.json of the models that have it.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import PreTokenizer

from fastslow.engine.host.files import no_panic, read_object, shown
from fastslow.engine.host.machine import give_back
from fastslow.engine.text.tokenizer_files.config import (
    CHARACTERS,
    CONTROL,
    LLAMA3,
    PREFIX,
    USER_DEFINED,
    GgufVocabulary,
    Settings,
    read_data,
    texts_of,
)
from fastslow.engine.text.vocabulary import (
    GROWTH,
    MOST_STEPS,
    PieceDecoder,
    Tokenizer,
    check_unicode,
    is_mark,
    is_unicode,
    stop_ids,
)

LONG = 4096  # characters: a millisecond of work
CHARSMAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"([^"]*)"')
PARTS = re.compile(rb'"(normalizer|pre_tokenizer)"\s*:')
LONGEST_PART = 2**22  # characters of such a part
# By the Unicode standard; ByteLevel writes each byte as a character.
GROWS = {"NFC": 4, "NFD": 4, "NFKC": 18, "NFKD": 18, "BertNormalizer": 4, "ByteLevel": 2}
LETTER = re.compile(rb"\\u00(?:[4-6]|7[0-9aA])")  # which no program escapes


def _check_parts(path: Path) -> None:
    """ValueError for what would take all memory, since the library ends the process where there is none."""
    data = read_data(path)
    if LETTER.search(data):  # the table's name may be written in escapes, too
        with suppress(ValueError, RecursionError):
            data = json.dumps(json.loads(data)).encode()
    for found in CHARSMAP.finditer(data):
        table = found[1].replace(b"\\", b"")
        head = b64decode(table[:8].ljust(8, b"A"))
        if int.from_bytes(head[:4], "little") > len(table) * 3 // 4 - 4:
            raise ValueError(f"{path} is not a tokenizer: its precompiled_charsmap is damaged")
    for part in PARTS.finditer(data):
        text = data[part.end() : part.end() + LONGEST_PART].decode("utf-8", "replace")
        growth, steps = GROWTH + 1 if len(text) == LONGEST_PART else 1, 1
        with suppress(ValueError, RecursionError):  # the library says what is no JSON
            growth, steps = _growth(json.JSONDecoder().raw_decode(text.lstrip())[0])
        if growth > GROWTH or steps > MOST_STEPS:
            raise ValueError(
                f"{path} is not a tokenizer: its {part[1].decode()} makes a text more than {GROWTH} "
                f"times as long, or has more than {MOST_STEPS} steps"
            )


def _growth(step: object) -> tuple[int, int]:
    """Return how many characters a step and those inside it may make of one, and the number of these steps."""
    growth, steps = 1, 1
    match step:
        case {"pattern": {"String": str(old)}, "content": str(new)} if old:
            growth = max(1, -(-len(new) // len(old)))
        case {"pattern": _, "content": str(new)}:  # an expression may match between any two
            growth = 1 + len(new)
        case {"prepend": str(new)}:
            growth = 1 + len(new)
        case {"precompiled_charsmap": str(table)}:
            data = b64decode(table)
            made = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
            growth = max(1, *(len(text.decode("utf-8", "replace")) for text in made))
        case {"type": str(name)}:
            growth = GROWS.get(name, 1)
    inner = (v for v in step.values() if isinstance(v, list)) if isinstance(step, dict) else ()
    for each, more in (_growth(item) for items in inner for item in items):
        growth = min(growth * each, GROWTH + 1)
        steps += more
    return growth, steps


class HfTokenizer(Tokenizer):
    """A `tokenizers` model of any kind whose decoder joins bytes (see PieceDecoder)."""

    @classmethod
    def read(cls, path: Path, settings: Settings) -> HfTokenizer:
        """Raises ValueError if the file at `path` is not a usable tokenizer.json."""
        _check_parts(path)
        try:
            with no_panic(f"{path} is not a tokenizer", Exception):
                library = tokenizers.Tokenizer.from_file(str(path))
        except ValueError:
            read_object(path)  # says it better where it is no JSON
            raise
        give_back()  # twice what is kept was taken to read the file
        return cls(library, settings)

    def __init__(self, library: tokenizers.Tokenizer, settings: Settings) -> None:
        """Raises ValueError for a model that cannot be streamed."""
        # May be left over in the file; they would cut a prompt silently.
        library.no_truncation()
        library.no_padding()
        # Asked of the library: another parse of the whole file, merges and all, would take 27 MB.
        decode = PieceDecoder(
            json.loads(library.decoder.__getstate__()) if library.decoder else None
        )
        ids = library.get_vocab(with_added_tokens=True)
        added = library.get_added_tokens_decoder()
        data = {number: decode(piece) for piece, number in ids.items()}
        data |= {number: token.content.encode() for number, token in added.items()}
        special = {number for number, token in added.items() if token.special}
        special |= {ids[piece] for piece in ids if piece in settings.special or is_mark(piece)}
        own = library.get_vocab(with_added_tokens=False).values()
        super().__init__(data, special, decode.leading_spaces, added.keys() - own)
        self._library = library
        matched = any(token.special and token.normalized for token in added.values())
        self._normalizer = library.normalizer if matched else None
        self._add_bos = settings.add_bos
        named = ids.get(settings.bos_token) if settings.bos_token is not None else None
        self.bos_id = settings.bos_id if named is None else named
        self.eos_ids = stop_ids(self, settings)

    def vocab(self) -> dict[str, int]:
        found: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        return found

    def token_id(self, piece: str) -> int | None:
        return self._library.token_to_id(piece) if is_unicode(piece) else None

    def piece(self, token_id: int) -> str | None:
        return self._library.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def as_matched(self, text: str) -> str:
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """tokenizer_config.json's `add_bos_token` decides, where given; else the file's post-processor does."""
        check_unicode(text)
        added = add_special and self._add_bos is not False
        added = added and not self.begins_with(text, self.bos_id)
        with no_panic("this tokenizer cannot read the text", Exception):
            if len(text) < LONG:
                ids: list[int] = self._library.encode(text, add_special_tokens=added).ids
            else:  # unlike `encode` it lets other threads run meanwhile
                ids = self._library.encode_batch([text], add_special_tokens=added)[0].ids
        if added and self._add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids


SPACE, UNKNOWN = "▁", "<unk>"
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
MARKED = rf"{SHORT_FORMS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
QWEN = ("qwen2", "deepseek-r1-qwen", "qwen35")  # qwen35: combining marks belong to words
ALIKE = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
TEKKEN = rf"{ALIKE}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"  # of ASCII
BY_SCRIPT = (  # one after the other
    TRIPLES,
    "[一-龥぀-ゟ゠-ヿ]+",
    rf"{MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
)
CASES = (  # letters of most scripts that have two cases
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅ"
    "Ὀ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴ"
    "ℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
DEEPSEEK = (  # one after the other
    r"[\r\n]",
    rf"\s?[{CASES}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
WIDE_MARKS = "[·–—‘’‛-‟…‧　-〃〈-】〔-〟〰〾〿﹏﹑﹔！-／：-＠［-｀｛-､]"
OPENPANGU = (
    rf"'(?i:[sdmt]|ll|ve|re)| (?=\p{{Han}}|{WIDE_MARKS})|{WIDE_MARKS}+[\r\n]*"
    r"|[^\r\n\p{L}\p{N}]?+[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K = rf"{CASED}|{TRIPLES}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
PATTERNS: dict[str, str | tuple[str, ...]] = {
    "tekken": TEKKEN,
    "seed-coder": rf"{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}",
    **dict.fromkeys(("hunyuan-dense", "deepseek-v3"), BY_SCRIPT),
    **dict.fromkeys(
        (*LLAMA3, "chatglm-bpe", "glm4", "dbrx"), f"{WORDS}|{TRIPLES}|{OTHERS}|{SPACES}"
    ),
    **dict.fromkeys((*QWEN, "hunyuan"), rf"{WORDS}|\p{{N}}|{OTHERS}|{SPACES}"),
    "qwen35": MARKED,
    "deepseek-llm": DEEPSEEK,
    "openpangu": OPENPANGU,
    **dict.fromkeys(("gpt-4o", "minimax-m2"), O200K),
}
PLAIN = ("gpt-2", "gpt2", "default", "olmo", "exaone4")  # as GPT-2 splits
DIGITS = ("smollm", "refact", "starcoder", "exaone")  # the same, and every digit apart
WHOLE_WORDS = (*LLAMA3, "gpt-4o", "tekken")  # kinds that take a word that is a token as it is


def pre_tokenizer(kind: str) -> PreTokenizer:
    """Return the splitter of texts that a `tokenizer.ggml.pre` names; ValueError for one that is not known."""
    if kind in PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if kind not in PATTERNS:
        known = ", ".join((*DIGITS, *PATTERNS, *PLAIN))
        raise ValueError(f"{PREFIX}pre {shown(kind)} is not one of the known {known}")
    found = PATTERNS[kind]
    each = [found] if isinstance(found, str) else found
    splits: list[PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in each
    ]
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, by_bytes])


def build_bpe(vocabulary: GgufVocabulary) -> tokenizers.Tokenizer:
    """The tokenizer; control tokens are special, and user-defined ones are found in any text."""
    spaced = vocabulary.model == CHARACTERS
    lines = pre_tokenizers.Split(Regex(r"\n+"), behavior="isolated")
    splits = lines if spaced else pre_tokenizer(vocabulary.pre)
    merges = []
    for merge in texts_of(vocabulary.fields, "merges"):
        first, space, second = merge.partition(" ")
        if not space:
            raise ValueError(f"{PREFIX}merges: {shown(merge)} must have a space in it")
        merges.append((first, second))
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    options: dict[str, Any] = {"ignore_merges": vocabulary.pre in WHOLE_WORDS}
    if spaced:
        unknown = UNKNOWN if UNKNOWN in ids else None
        options = {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown}
    try:
        library = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, **options))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ValueError(f"{PREFIX}merges: {error!s:.99}") from None
    if vocabulary.pre in QWEN:
        library.normalizer = normalizers.NFC()
    library.pre_tokenizer = splits
    library.decoder = decoders.ByteLevel()
    if spaced:
        library.normalizer = normalizers.Replace(" ", SPACE)
        steps = decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()
        library.decoder = decoders.Sequence([*steps])
    _add(library, vocabulary)
    _surround(library, vocabulary)
    return library


def _add(library: tokenizers.Tokenizer, vocabulary: GgufVocabulary) -> None:
    both = list(zip(vocabulary.tokens, vocabulary.types))
    marks = [AddedToken(t, special=True, normalized=False) for t, k in both if k == CONTROL]
    library.add_special_tokens(marks)
    library.add_tokens([AddedToken(t, normalized=False) for t, k in both if k == USER_DEFINED])


def _surround(library: tokenizers.Tokenizer, vocabulary: GgufVocabulary) -> None:
    bos = vocabulary.id_of("bos_token_id") if vocabulary.add_bos else None
    eos = vocabulary.id_of("eos_token_id") if vocabulary.flag("add_eos_token", False) else None
    around: list[Any] = [(vocabulary.tokens[n], n) for n in (bos, eos) if n is not None]
    if around:
        before = [] if bos is None else [f"{vocabulary.tokens[bos]}:0"]
        after = [] if eos is None else [f"{vocabulary.tokens[eos]}:0"]
        library.post_processor = processors.TemplateProcessing(
            single=[*before, "$A:0", *after], pair=None, special_tokens=around
        )

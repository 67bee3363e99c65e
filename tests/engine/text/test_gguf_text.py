"""Tokenizers from a GGUF header give the ids of the ones that the file was made from."""

import io
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from gguf import TokenType
from gguf_writer import finish
from refusals import refused
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer

from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer

# The patterns in the tokenizer.json files that are published: of Llama 3, Qwen 2, Qwen 3.5 and gpt-oss.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
WIDE = "[＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､　、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。]"
OPENPANGU = (
    rf"'(?i:[sdmt]|ll|ve|re)| (?=\p{{Han}}|{WIDE})|{WIDE}+[\r\n]*|[^\r\n\p{{L}}\p{{N}}]?+[\p{{L}}\p{{M}}]+|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
BY_SCRIPT = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (
    "the quick Brown fox JUMPS don't WE'LL I'm naïve café 你好 世界 今天的天气很好 こんにちは 안녕하세요 привет мир "
    "😀 🇨🇳 ½ ① 12 3456 7890123 3.14159 0xFF def main(): return x*x {'a': [1,2]} // <|im_end|> <tool> é ﬁ Ω "
    "... !!! ?? -- == != //* #$%^& http://a.b/c?d=e 👩\u200d👩\u200d👧 \u200b \ufeff "
    "हिन्दी ตัวอักษรที่นี่ עִבְרִית x\u0323\u0335 \u0335, 1\u20e3 ٣٤٥"
)
GAPS = (" ", " ", " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "", "\u00a0", "\u3000", "\x00")


@cache
def lines() -> list[str]:
    """600 lines of mixed text: Chinese, emoji, code, spaces, digits, control characters."""
    chance = random.Random(0)
    made = []
    for _ in range(600):
        words = chance.choices(WORDS.split(" "), k=chance.randint(1, 14))
        odd = "".join(chr(chance.choice((chance.randrange(32), 0x4E00 + chance.randrange(9000)))))
        text = "".join(word + chance.choice(GAPS) for word in words)
        made.append(chance.choice(("", " ", "\n")) + text + (odd if chance.random() < 0.2 else ""))
    return made


def split(*patterns: str) -> pre.PreTokenizer:
    cuts = [pre.Split(Regex(pattern), behavior="isolated", invert=False) for pattern in patterns]
    return pre.Sequence([*cuts, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


PLAIN = pre.ByteLevel(add_prefix_space=False)
SPLITS: dict[str, pre.PreTokenizer] = {
    "llama-bpe": split(LLAMA3), "lfm2": split(LLAMA3), "qwen2": split(QWEN2), "deepseek-r1-qwen": split(QWEN2), "qwen35": split(QWEN35),
    "smollm": pre.Sequence([pre.Digits(individual_digits=True), PLAIN]), "gpt-4o": split(O200K), "gpt-2": PLAIN,
    "glm4": split(LLAMA3), "hunyuan": split(QWEN2), "minimax-m2": split(O200K),
    "tekken": split(TEKKEN), "seed-coder": split(SEED), "dbrx": split(LLAMA3), "exaone4": PLAIN,
    "deepseek-llm": split(r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"),
    "openpangu": split(OPENPANGU), "hunyuan-dense": split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", BY_SCRIPT),
}  # fmt: skip


def set_up(library: Tokenizer, kind: str) -> None:
    """As the published files of a kind do."""
    library.pre_tokenizer = SPLITS[kind]
    library.model.ignore_merges = kind in ("llama-bpe", "lfm2", "gpt-4o", "tekken")
    if "qwen" in kind:
        library.normalizer = normalizers.NFC()
    if kind in ("llama-bpe", "lfm2", "tekken"):
        library.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )


def trained(kind: str) -> Tokenizer:
    library = Tokenizer(models.BPE())
    set_up(library, kind)
    trainer = BpeTrainer(
        vocab_size=1200, special_tokens=list(MARKS), initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(lines(), trainer)
    set_up(library, kind)  # training makes the model anew
    library.decoder = decoders.ByteLevel()
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    return library


def write(path: Path, add: Callable[[gguf.GGUFWriter], object]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)
    finish(writer, ())
    return path


def add_bpe(writer: gguf.GGUFWriter, library: Tokenizer, kind: str) -> None:
    """The header that llama.cpp's converter writes."""
    vocab = library.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.__getitem__)
    types = [TokenType.CONTROL if t in MARKS else TokenType.NORMAL for t in tokens]
    types[vocab["<tool>"]] = TokenType.USER_DEFINED
    merges = json.loads(library.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


@pytest.mark.parametrize("kind", SPLITS)
def test_byte_level_ids_are_those_of_the_hugging_face_tokenizer(tmp_path: Path, kind: str) -> None:
    library = trained(kind)
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", lambda writer: add_bpe(writer, library, kind)))
    for text in lines():
        assert tokenizer.encode(text) == library.encode(text).ids, text
        whole = tokenizer.encode(text, add_special=False)
        assert whole == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(whole, skip_special=False) == library.decode(whole, skip_special_tokens=False)
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.eos_ids == {0, 2}  # <|im_end|> ends a turn, whatever the header says
    assert tokenizer.bos_id == 0


def test_qwen35_splits_as_its_class_in_transformers_does(tmp_path: Path) -> None:
    """Marks are parts of words, which the rule of Qwen 2 cuts."""
    theirs = pytest.importorskip("transformers.models.qwen3_5.tokenization_qwen3_5").Qwen3_5Tokenizer
    library = trained("qwen35")
    model = json.loads(library.to_str())["model"]
    theirs = theirs(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    ours = load_tokenizer(write(tmp_path / "m.gguf", lambda writer: add_bpe(writer, library, "qwen35")))
    plain = [text.replace("<|im_end|>", "|").replace("<tool>", "|") for text in lines()]
    for text in plain:
        assert ours.encode(text) == theirs.encode(text), text
    cut, whole = (split(pattern) for pattern in (QWEN2, QWEN35))
    assert sum(cut.pre_tokenize_str(text) != whole.pre_tokenize_str(text) for text in plain) > 300


def test_gemma4_ids_are_those_of_its_class_in_transformers(tmp_path: Path) -> None:
    """BPE of characters with spaces as marks; what no token has becomes bytes. Marks that files show are special."""
    theirs = pytest.importorskip("transformers.models.gemma.tokenization_gemma").GemmaTokenizer
    shown = ("<|channel>", "<channel|>", '<|"|>', "<tool>")
    begin = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<turn|>", *shown, *(f"<0x{n:02X}>" for n in range(256))]
    library = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre.Split(Regex(r"\n+"), behavior="isolated")
    kept = [line for line in lines() if "你" not in line]
    library.train_from_iterator(kept, BpeTrainer(vocab_size=1500, special_tokens=begin, show_progress=False))
    model = json.loads(library.to_str())["model"]

    def add(writer: gguf.GGUFWriter) -> None:
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        kinds = dict.fromkeys(begin[:6], TokenType.CONTROL) | dict.fromkeys(shown, TokenType.USER_DEFINED)
        kinds |= {"<unk>": TokenType.UNKNOWN} | dict.fromkeys(begin[10:], TokenType.BYTE)
        writer.add_tokenizer_model("gemma4")
        writer.add_token_list(tokens)
        writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)

    ours = load_tokenizer(write(tmp_path / "m.gguf", add))
    reference = theirs(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    plain = [text.replace("<tool>", "|").replace("\x00", "") for text in lines()]
    for text in plain:
        ids = ours.encode(text)
        assert ids[0] == 2 and ids[1:] == reference.encode(text, add_special_tokens=False), text
        assert ours.decode(ids[1:]) == text
    assert {ours.token_id(mark) for mark in shown[:3]} < ours.special_ids and ours.token_id(
        "<tool>"
    ) not in ours.special_ids
    assert ours.eos_ids == {1, ours.token_id("<turn|>")}


@cache
def spm_model() -> bytes:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.replace("\x00", "") for line in lines()), model_writer=made, vocab_size=1100,
        model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, user_defined_symbols=["<tool>"],
        control_symbols=["<|im_end|>"], character_coverage=0.99, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


def add_spm(writer: gguf.GGUFWriter) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
    every = range(library.piece_size())
    kinds = {
        TokenType.UNKNOWN: library.is_unknown, TokenType.CONTROL: library.is_control,
        TokenType.UNUSED: library.is_unused, TokenType.BYTE: library.is_byte,
    }  # fmt: skip
    types = [next((k for k, of in kinds.items() if of(n)), TokenType.NORMAL) for n in every]
    types[library.piece_to_id("<tool>")] = TokenType.USER_DEFINED
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([library.id_to_piece(n) for n in every])
    writer.add_token_scores([library.get_score(n) for n in every])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_eot_token_id(library.piece_to_id("<|im_end|>"))
    writer.add_add_space_prefix(True)


def test_sentencepiece_ids_are_those_of_the_model(tmp_path: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=spm_model())
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", add_spm))
    end = library.piece_to_id("<|im_end|>")
    for text in lines():
        plain = text.replace("<|im_end|>", "|")  # the library itself finds no mark in a text
        assert tokenizer.encode(plain) == [1, *library.encode(plain)], plain
        ids = tokenizer.encode(plain, add_special=False)
        assert tokenizer.decode(ids) == library.decode(ids)
    assert tokenizer.encode("a<|im_end|>", add_special=False)[-1] == end
    assert tokenizer.bos_id == 1 and tokenizer.eos_ids == {2, end} and {0, 1, 2, end} == tokenizer.special_ids


def test_template_and_flags_come_from_the_header(tmp_path: Path) -> None:
    library = trained("qwen2")

    def add(writer: gguf.GGUFWriter) -> None:
        add_bpe(writer, library, "qwen2")
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)
        writer.add_chat_template("{{ bos_token }}{{ messages[0]['content'] }}!")

    path = write(tmp_path / "m.gguf", add)
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("the fox") == [0, *library.encode("the fox").ids, 0]
    assert load_template(path, tokenizer).render([{"role": "user", "content": "Hi"}]) == "<|endoftext|>Hi!"

    def broken(writer: gguf.GGUFWriter) -> None:
        add_bpe(writer, library, "qwen2")
        writer.add_chat_template("{% if %}")

    refused("tokenizer.chat_template line 1: ", load_template, write(path, broken), tokenizer)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("tokenizer.ggml.pre", "falcon", "ggml.pre 'falcon' is not one of the known smol"),
    ("tokenizer.ggml.model", "rwkv", "ggml.model 'rwkv' is not one of the known llam"),
    ("tokenizer.ggml.bos_token_id", 5000, "bos_token_id 5000 must be at most 8"),
    ("tokenizer.ggml.token_type", [1, 2], "token_type .* must be a list of 8.. numbers"),
    ("tokenizer.ggml.add_bos_token", "yes", "add_bos_token 'yes' must be true or false"),
    ("tokenizer.ggml.tokens", [1, 2], "tokenizer.ggml.tokens .* must be a list of texts"),
])  # fmt: skip
def test_a_header_that_does_not_fit_is_one_sentence(tmp_path: Path, key: str, value: Any, message: str) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_bpe(writer, trained("smollm"), "smollm")
        kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}
        kind = kinds.get(type(value), gguf.GGUFValueType.ARRAY)
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind)

    path = write(tmp_path / "m.gguf", add)
    assert refused(message, load_tokenizer, path).startswith(str(path))

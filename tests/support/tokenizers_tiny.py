"""Tiny tokenizer folders for tests: a byte-level BPE and a Pangu-like SentencePiece model."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
PANGU = tuple(f"[unused{i}]" for i in range(9, 18))

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Every expert answers when its group is asked, and the router decides.",
    "How can I help you today? Please send your order number.", "def main(): return sum(x * x for x in range(10))",
    "你好，世界。今天的天气很好，我们去公园。", "用户：请问怎么退货？ 助手：请提供订单号。 系统：",
)  # fmt: skip


def write_bpe(folder: Path, chat_template: str | None = None, vocab_size: int = 320) -> int:
    """Write tokenizer.json and tokenizer_config.json; returns the number of ids, at least 300.

    Ids 0.. are SPECIAL (`<|endoftext|>` is bos, `<|im_end|>` is eos), then all 256 bytes, then merges.
    """
    assert vocab_size >= 300
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_bpe(vocab_size), "utf-8")
    config: dict[str, Any] = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    config |= {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return vocab_size


def write_spm(folder: Path, vocab_size: int = 420, **config: Any) -> int:
    """Write tokenizer.model and tokenizer_config.json; returns the number of ids, at most 655.

    Ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`, then PANGU (`[unused10]` is eos), then 256 byte pieces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = _spm(vocab_size)
    (folder / "tokenizer.model").write_bytes(model)
    fields = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "[unused10]"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), "utf-8")
    return int(sentencepiece.SentencePieceProcessor(model_proto=model).piece_size())


@cache
def _bpe(vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()  # the sentences ran out of merges
    tokenizer.add_special_tokens([f"<|extra_{i}|>" for i in range(missing)])
    return tokenizer.to_str()


@cache
def _spm(vocab_size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, user_defined_symbols=list(PANGU), hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return model.getvalue()


def write_around(folder: Path, single: str) -> None:
    """A byte-level tokenizer whose post-processor puts special tokens around every text."""
    write_bpe(folder)
    path = folder / "tokenizer.json"
    library = Tokenizer.from_file(str(path))
    library.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(piece, i) for i, piece in enumerate(SPECIAL)]
    )
    library.enable_truncation(2)
    library.enable_padding(length=9)
    library.save(str(path))
    edit(folder / "tokenizer_config.json", add_bos_token=None)


def rewrite(folder: Path, **fields: Any) -> None:
    """A tokenizer.json with other fields; dicts are merged."""
    write_bpe(folder)
    path = folder / "tokenizer.json"
    file = json.loads(path.read_text("utf-8"))
    for name, value in fields.items():
        file[name] = {**file[name], **value} if isinstance(file[name], dict) else value
    path.write_text(json.dumps(file), "utf-8")


def edit(path: Path, **fields: Any) -> None:
    """Other fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")

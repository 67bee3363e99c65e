"""A GGUF file as a dense checkpoint folder, which the built-in models are made from. All others run as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.checkpoint.checkpoint import BLOCKS, Checkpoint
from fastslow.engine.checkpoint.gguf_shard import GgufShard
from fastslow.engine.host.files import about
from fastslow.engine.model.config import ModelConfig, header_config
from fastslow.engine.text.tokenizer_files.config import GgufVocabulary
from fastslow.engine.text.tokenizer_files.hf import build_bpe
from fastslow.models.folder import fresh_folder, require_vacant, write_json

Q4_1 = "Q4_1"
USUAL = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
PADDING = "padding_token_id"


def gguf_to_dense(gguf: Path, out: Path) -> Path:
    """Write a GGUF of the llama family, with a byte-level BPE tokenizer, as a Hugging Face folder.

    The weights are in bfloat16; where the file has layers in Q4_1, q4_1.blocks holds their 4-bit blocks, which
    int4 runs as they are. Other programs read every *.safetensors as weights, so its name is another.

    gguf: the file; any quantisation the gguf library can dequantise. out: folder to create; it appears only when
    complete. ValueError: the file is no such model; `out` is not vacant.
    """
    require_vacant(out)
    with fresh_folder(out) as folder:
        write_files(gguf, folder)
        checkpoint = Checkpoint.own(gguf, ModelConfig.from_folder(gguf))
        with checkpoint.reader(progress=False) as read:
            every = {name: read(name).to(torch.bfloat16) for name in sorted(checkpoint.names)}
        save_file(every, folder / "model.safetensors", {"format": "pt"})
        if blocks := _q4_1_blocks(gguf):
            save_file(blocks, folder / BLOCKS)
    return out


def write_files(gguf: Path, folder: Path) -> None:
    """Write into a folder what `gguf_to_dense` does but the weights: the config and the tokenizer's files."""
    model = ModelConfig.from_folder(gguf)
    heads = AlikeLayers.of(model).attention
    with about(gguf):
        vocabulary = GgufVocabulary.read(gguf)
        library = build_bpe(vocabulary)
    padding = vocabulary.id_of(PADDING) or 0
    config: dict[str, Any] = {**header_config(gguf), **USUAL, "head_dim": heads.head_dim}
    config |= {"num_key_value_heads": heads.kv_heads, "pad_token_id": padding}
    config |= {"eos_token_id": vocabulary.id_of("eos_token_id"), "torch_dtype": "bfloat16"}
    library.save(str(folder / "tokenizer.json"))
    _write_settings(vocabulary, model, folder)
    write_json(folder / "config.json", config)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    said = {name: config.get(name) for name in ids} | {"do_sample": False}  # it answers best so
    write_json(folder / "generation_config.json", said)


def _q4_1_blocks(gguf: Path) -> dict[str, torch.Tensor]:
    """The 4-bit matrices of the layers, still packed: uint8 [outputs, inputs / 32 * 20].

    A block is 32 inputs: scale and minimum in float16, then 16 bytes, whose low halves are
    inputs 0 to 15.
    """
    shard, found = GgufShard(gguf), {}
    for name, kind in shard.types().items():
        if kind == Q4_1 and name.startswith("model.layers."):
            found[name] = torch.tensor(shard.blocks(name, (Q4_1,), again=False))
    return found


def _write_settings(vocabulary: GgufVocabulary, model: ModelConfig, folder: Path) -> None:
    said = vocabulary.settings()
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": said.add_bos,
        "bos_token": said.bos_token,
        "eos_token": said.eos_token,
        "model_max_length": model.max_positions,
        "clean_up_tokenization_spaces": False,
    }
    for field, key in (("unk_token", "unknown_token_id"), ("pad_token", PADDING)):
        if (number := vocabulary.id_of(key)) is not None:
            config[field] = vocabulary.tokens[number]
    if isinstance(said.chat_template, str) and said.chat_template:
        config["chat_template"] = said.chat_template
        (folder / "chat_template.jinja").write_text(said.chat_template, "utf-8")
    write_json(folder / "tokenizer_config.json", config)

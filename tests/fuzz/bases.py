"""Tiny valid checkpoints of every kind, which the fuzzer then damages; and whole ones of odd sizes, most of which were
never tried."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import assistant_tools
import checkpoints
import eagle_tools
import gemma_models
import gguf_hybrid
import gguf_openpangu
import gguf_tools
import gguf_writer
import head_tools
import hybrid_model
import pangu_2_reference
import pangu_v2_tools
import peer_models
import published_tools
import quant_tools
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers_tiny import write_bpe, write_spm

from fastslow.draft.suffix import corpus, documents
from fastslow.engine.text.tokenizer import load_tokenizer

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 32, "max_position_embeddings": 128,
}  # fmt: skip
MOGE = {"num_experts": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
MARKS = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
PRESETS: dict[str, Any] = {
    "modes": {
        "fast": {"thinking": "off", "description": "short", "sampling": {"temperature": 0.5}},
        "brief": {"base": "fast", "thinking_budget": 4, "speculation": {"drafter": "suffix"}},
    },
    "auto": {"weights": {"length": 0.1, "code": 0.6}, "bias": -1.0},
    "thinking_tags": ["<think>", "</think>"],
}
TUNED: dict[str, Any] = {
    "version": 1, "model": "tiny", "speculation": {"drafter": "suffix", "nodes": 4, "accept": "auto", "width": 1},
    "measured": {"seconds": 1.5, "rows": [1, 2, 3]}, **{name: PRESETS[name] for name in ("modes", "auto")},
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A way to write and use a case's folder; "@name" is a path in it. `drafters`: fields of the
    `Speculation` to try beside the usual ones. `odd`: writes a new model for each case."""

    make: Callable[[Path], Any]
    target: str = "model"
    options: tuple[tuple[str, Any], ...] = ()
    drafters: tuple[dict[str, Any], ...] = ()
    odd: Callable[[Path, Random], Any] | None = None


def _dense(folder: Path, **fields: Any) -> Path:
    return checkpoints.write_dense(folder, **{**SMALL, "vocab": 320, **fields})


def _chatty(folder: Path, **fields: Any) -> None:
    """Dense, with the files that a chat model has."""
    _dense(folder, **fields)
    write_bpe(folder, MARKS)
    more: dict[str, dict[str, Any]] = {
        "generation_config.json": {"eos_token_id": [2, 0], "temperature": 0.7},
        "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "lstrip": False}},
        "added_tokens.json": {"<|im_start|>": 1},
        "fastslow.json": PRESETS,
    }
    for name, value in more.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "chat_template.jinja").write_text(MARKS)


def _moge(folder: Path, **fields: Any) -> Path:
    checkpoints.write_moge(folder, **{**SMALL, **MOGE, "vocab": 420, **fields})
    write_spm(folder)
    (folder / "fastslow.json").write_text(json.dumps(PRESETS | {"thinking_tags": None}))
    return folder


def _mtp(folder: Path) -> None:
    fields = {**SMALL, **MOGE, "vocab_size": 420, "v_channels": 16, "num_experts_per_tok": 2}
    fields.pop("head_dim")
    pangu_v2_tools.write_moe(folder, **{**fields, "qk_nope_dim": 8, "qk_rope_dim": 8})
    write_spm(folder)


def _quantised(folder: Path) -> None:
    source = _moge(folder.parent / "source", torch_dtype="bfloat16")
    quant_tools.quantised(source, folder)
    shutil.rmtree(source)


def _exported(folder: Path, kind: str) -> None:
    source = _dense(folder.parent / "source", architecture="PanguEmbeddedForCausalLM", vocab=420)
    write_spm(quant_tools.export(source, folder, kind, bits=kind == "W8A8"))
    shutil.rmtree(source)


def _published(folder: Path, method: str) -> None:
    source = folder.parent / "source"
    _chatty(source)
    published_tools.publish(source, folder, published_tools.METHODS[method])
    shutil.rmtree(source)


def _with_head(folder: Path) -> None:
    _chatty(folder, torch_dtype="bfloat16")
    config, weights = head_tools.tiny_weights(folder, (0, 1), 10)
    head_tools.write_head(folder / "draft_head.safetensors", config, weights)


def _with_eagle(folder: Path, layout: str, **fields: Any) -> None:
    """A published head beside the target."""
    _chatty(folder)
    eagle_tools.write_eagle(folder.with_name("eagle"), folder, layout, 40, **fields)


def _with_draft(folder: Path) -> None:
    _chatty(folder)
    _dense(folder.with_name("draft"), seed=1, num_hidden_layers=1, max_position_embeddings=64)
    write_bpe(folder.with_name("draft"))


def _across(folder: Path) -> None:
    """A draft model of another vocabulary."""
    _chatty(folder)
    _moge(folder.with_name("draft"), sharded=False)


def _with_blocks(folder: Path) -> None:
    """As a GGUF in Q4_1 becomes one: a block of 32 inputs is a scale, a minimum and 16 bytes."""
    _chatty(folder, torch_dtype="bfloat16", tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    blocks, draws = {}, np.random.default_rng(0)
    for name, tensor in checkpoints.tensors(config).items():
        if name.endswith("_proj.weight"):
            rows, inputs = tensor.shape
            raw = draws.integers(0, 256, (rows, inputs // 32, 20), dtype=np.uint8)
            raw[:, :, :4].view(np.float16)[:] = (0.01, -0.08)
            blocks[name] = torch.from_numpy(raw.reshape(rows, -1))
    save_file(blocks, folder / "q4_1.blocks")


def _with_corpus(folder: Path) -> None:
    _chatty(folder)
    vocab, stored = load_tokenizer(folder).vocab(), documents.Documents()
    for some in np.random.default_rng(0).integers(5, 320, (3, 12)).tolist():
        stored.add(some[4:], some[:4])
    corpus.save(folder.with_name("corpus.safetensors"), stored, vocab)


def _with_settings(folder: Path) -> None:
    _chatty(folder)
    folder.with_name("tuned.json").write_text(json.dumps(TUNED))


def _unigram(folder: Path) -> None:
    """A SentencePiece tokenizer in the form of tokenizer.json."""
    _dense(folder, vocab=300, tie_word_embeddings=True)
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581", -2.0), ("\u2581the", -3.0)]
    pieces += [(chr(97 + n), -4.0 - n) for n in range(26)]
    library = Tokenizer(models.Unigram(pieces, unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.save(str(folder / "tokenizer.json"))


def _gguf(folder: Path) -> None:
    """A one-layer llama; its projections of 32 inputs are in Q4_1."""
    vocab = len(gguf_tools.BYTE_TOKENS)
    source = _dense(folder.with_name("source"), vocab=vocab, num_hidden_layers=1)
    kind = gguf_writer.matrices(gguf.GGMLQuantizationType.Q4_1)
    vocabulary = partial(gguf_tools.add_byte_level, template=MARKS)
    gguf_tools.write_gguf(source, folder.with_name("m.gguf"), kind, vocabulary)
    shutil.rmtree(source)


def _gguf_mixture(folder: Path) -> None:
    """Experts in one tensor, rows in Q8_0, and a SentencePiece vocabulary."""
    write_spm(folder.with_name("text"))
    model = sentencepiece.SentencePieceProcessor(str(folder.with_name("text") / "tokenizer.model"))
    every = range(model.piece_size())
    wide = {"hidden_size": 32, "moe_intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 2}
    source = checkpoints.write_family(
        folder.with_name("source"), "qwen3_moe", vocab=len(every), mlp_only_layers=[], **wide
    )

    def vocabulary(writer: gguf.GGUFWriter) -> None:
        kinds = {2: model.is_unknown, 3: model.is_control, 6: model.is_byte}
        writer.add_tokenizer_model("llama")
        writer.add_token_list([model.id_to_piece(n) for n in every])
        writer.add_token_scores([model.get_score(n) for n in every])
        writer.add_token_types([next((k for k, of in kinds.items() if of(n)), 1) for n in every])
        gguf_tools.add_marks(writer, MARKS)

    kind = gguf_writer.matrices(gguf.GGMLQuantizationType.Q8_0)
    gguf_tools.write_gguf(source, folder.with_name("m.gguf"), kind, vocabulary)
    for name in ("text", "source"):
        shutil.rmtree(folder.with_name(name))


def _gguf_hybrid(folder: Path) -> None:
    """Gated delta nets with experts in Q8_0, and a file beside with the layer that drafts."""
    vocab = len(gguf_tools.BYTE_TOKENS)
    wide: dict[str, Any] = {**SMALL, "moe_intermediate_size": 32, "linear_key_head_dim": 8, "linear_value_head_dim": 16}
    wide |= {"layer_types": [hybrid_model.LINEAR, hybrid_model.FULL], "vocab_size": vocab}
    source = gguf_hybrid.write_hybrid(folder.with_name("source"), "qwen35moe", **wide)
    kind = gguf_writer.matrices(gguf.GGMLQuantizationType.Q8_0)
    vocabulary = partial(gguf_tools.add_byte_level, template=MARKS, pre="qwen35")
    gguf_tools.write_apart(source, folder.with_name("m.gguf"), kind, vocabulary)
    shutil.rmtree(source)


def _peer(folder: Path, name: str) -> None:
    """A model as transformers writes it."""
    fields: dict[str, Any] = {"vocab_size": 320, "max_position_embeddings": 128}
    if name.startswith("gemma"):
        model = gemma_models.build(name, vocab_size_per_layer_input=320, **fields)
    else:
        model = peer_models.build(name, **fields)
    peer_models.write(folder, model)
    write_bpe(folder, MARKS)


def _gguf_peer(folder: Path, name: str) -> None:
    vocab, source = len(gguf_tools.BYTE_TOKENS), folder.with_name("source")
    kind, own = (peer_models.MIXTURES | peer_models.NEAR)[name]
    config = {**peer_models.SMALL, "rope_theta": 1e4, "head_dim": 16, **own, "architectures": [f"{kind}ForCausalLM"]}
    config |= {"vocab_size": vocab, "max_position_embeddings": 128, "num_hidden_layers": 2, "torch_dtype": "bfloat16"}
    checkpoints.write(source, config, checkpoints.tensors(config))
    vocabulary = partial(gguf_tools.add_byte_level, template=MARKS)
    pick = gguf_writer.matrices(gguf.GGMLQuantizationType.Q8_0)
    gguf_tools.write_gguf(source, folder.with_name("m.gguf"), pick, vocabulary)
    shutil.rmtree(source)


def _openpangu(folder: Path, vocab: int = 320) -> None:
    """Every part of openPangu 2.0 in two layers."""
    layers: dict[str, Any] = {"num_hidden_layers": 2, "dsa_layers": [0], "swa_layers": [1], "sliding_window_list": [6]}
    layers |= {"block_post_layernorm_idx": [0], "num_nextn_predict_layers": 0, "mhc_recur_norm": 3, "index_topk": 128}
    pangu_2_reference.Pangu2(vocab_size=vocab, max_position_embeddings=128, **layers).write(folder)
    write_bpe(folder, MARKS)


def _gguf_openpangu(folder: Path) -> None:
    source = folder.with_name("source")
    _openpangu(source, len(gguf_tools.BYTE_TOKENS))
    vocabulary = partial(gguf_tools.add_byte_level, template=MARKS, pre="openpangu")
    pick = gguf_writer.matrices(gguf.GGMLQuantizationType.Q8_0)
    gguf_openpangu.write_openpangu(source, folder.with_name("m.gguf"), pick, change=vocabulary)
    shutil.rmtree(source)


HEADS = ((1, 1), (2, 1), (6, 2), (3, 3), (64, 1), (65, 1), (130, 1), (128, 2), (256, 1))
SCALINGS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
     "original_max_position_embeddings": 32},
)  # fmt: skip


SIZES: dict[str, Sequence[Any]] = {
    "head_dim": (4, 6, 8, 16, 18, 64, 130), "hidden_size": (1, 4, 31, 32, 33, 36, 64, 100),
    "num_hidden_layers": (1, 2, 3), "intermediate_size": (1, 3, 32, 33, 100),
    "max_position_embeddings": (16, 40, 100, 128, 4096), "vocab": (1, 2, 9, 63, 320, 320, 321, 1000),
    "torch_dtype": ("float32", "bfloat16", "bfloat16", "float16", "float64"),
    "tie_word_embeddings": (True, True, False, False, False), "rope_scaling": SCALINGS, "seed": range(1000),
}  # fmt: skip
EXPERTS: dict[str, Sequence[Any]] = {
    "moe_intermediate_size": (1, 16, 33),
    "shared_expert_intermediate_size": (1, 32, 40),
    "mlp_only_layers": ([], [0]),
}


def odd_model(folder: Path, random: Random) -> Path:
    """A MoGE, dense or openPangu Embedded model."""
    fields: dict[str, Any] = {name: random.choice(sizes) for name, sizes in SIZES.items()}
    fields["num_attention_heads"], fields["num_key_value_heads"] = random.choice(HEADS)
    fields["eos_token_id"] = min(2, fields["vocab"] - 1)
    if random.random() < 0.5:
        groups = random.choice((1, 2, 3))
        fields |= {name: random.choice(sizes) for name, sizes in EXPERTS.items()}
        fields["num_experts_per_tok"] = groups
        fields["num_experts"] = groups * random.choice((1, 2, 5, 40))
        checkpoints.write_moge(folder, sharded=False, **fields)
    else:
        checkpoints.write_dense(folder, random.choice(("LlamaForCausalLM", "PanguEmbeddedForCausalLM")), **fields)
    if fields["vocab"] >= 320:
        write_bpe(folder)
    return folder


def odd_head(folder: Path, random: Random) -> None:
    """A draft head of odd sizes for a usual model."""
    checkpoints.write_dense(folder, vocab=320, hidden_size=32, torch_dtype=random.choice(("float32", "bfloat16")))
    write_bpe(folder)
    made, weights = head_tools.tiny_weights(folder, random.choice(((0,), (1,), (0, 1), (1, 0))), 10)
    heads, kv_heads = random.choice(HEADS)
    config = replace(
        made, heads=heads, kv_heads=kv_heads, head_dim=random.choice((2, 4, 6, 16, 18, 64)),
        neurons=random.choice((1, 31, 32, 48)), window=random.choice((1, 2, 16, 512, 512, 512, 2**31 - 1, 2**31)),
        prompt=random.choice((0, 1, 7, 7, 1024, 1024, 2**63)), rope_theta=random.choice((1e-300, 1.0, 1e4, 1e308)),
        eps=random.choice((1e-300, 1e-5, 1e308)),
    )  # fmt: skip
    draws = torch.Generator().manual_seed(random.randrange(1000))
    for name, shape in config.shapes().items():
        if weights[name].shape != shape:
            weights[name] = torch.randn(shape, generator=draws) * 0.2
    tokens = weights["tokens"] = weights["tokens"].long()
    if random.random() < 0.4:
        wrong = (-1, -(2**31), int(tokens[0]), 319, 320, 2**31, 2**62)
        tokens[random.randrange(len(tokens))] = random.choice(wrong)
    save_file(weights, folder / "draft_head.safetensors", config.metadata())


KINDS: dict[str, Kind] = {
    "moge": Kind(_moge, drafters=({"drafter": "self", "nodes": 3},)),
    "dense": Kind(_chatty, drafters=({"drafter": "self", "layers": (0,), "width": 2},)),
    "bfloat16": Kind(lambda f: _moge(f, torch_dtype="bfloat16", sharded=False)),
    "int8": Kind(lambda f: _moge(f, sharded=False), options=(("quantization", "int8"),)),
    "mtp": Kind(_mtp, drafters=({"drafter": "mtp", "nodes": 3},)),
    "quantised": Kind(_quantised),
    "dynamic": Kind(lambda f: _exported(f, "W8A8_DYNAMIC")),
    "static": Kind(lambda f: _exported(f, "W8A8")),
    "gptq": Kind(lambda f: _published(f, "gptq 4, act-order")),
    "awq": Kind(lambda f: _published(f, "awq")),
    "compressed": Kind(lambda f: _published(f, "w4a16, zeros")),
    "fp8": Kind(lambda f: _published(f, "fp8 blocks")),
    "head": Kind(_with_head, drafters=({"drafter": "head", "nodes": 4, "width": 2},)),
    "assistant": Kind(
        lambda f: write_bpe(assistant_tools.ReferencePair(f.parent, True, 320).target, MARKS),
        target="target",
        drafters=({"drafter": "head", "head": "@assistant", "nodes": 4, "width": 2},),
    ),
    "eagle": Kind(
        lambda f: _with_eagle(f, "original", attention_bias=True),
        drafters=({"drafter": "head", "head": "@eagle", "nodes": 4, "width": 2},),
    ),
    "eagle-library": Kind(
        lambda f: _with_eagle(f, "speculators", embedding=True, fc_norm=True, norm_output=True),
        drafters=({"drafter": "head", "head": "@eagle", "nodes": 4},),
    ),
    "draft": Kind(_with_draft, drafters=({"drafter": "model", "model": "@draft"},)),
    "across": Kind(_across, drafters=({"drafter": "model", "model": "@draft"},)),
    "blocks": Kind(_with_blocks),
    "corpus": Kind(_with_corpus, drafters=({"drafter": "suffix", "corpus": "@corpus.safetensors"},)),
    "settings": Kind(_with_settings, options=(("auto", "@tuned.json"), ("speculation", "@tuned.json"))),
    "unigram": Kind(_unigram),
    "gguf": Kind(_gguf, target="m.gguf"),
    "gguf-mixture": Kind(_gguf_mixture, target="m.gguf"),
    "gguf-hybrid": Kind(_gguf_hybrid, target="m.gguf", drafters=({"drafter": "mtp", "nodes": 3},)),
    **{
        name: Kind(partial(_peer, name=name))
        for name in ("phi3 long", "deepseek_v32", "olmo3", "ministral3", "gemma4", "gemma4 mixture", "ernie")
    },
    **{
        f"gguf {name}": Kind(partial(_gguf_peer, name=name), target="m.gguf")
        for name in ("phi3", "glm", "minimax", "deepseek_v3")
    },
    "openpangu": Kind(_openpangu),
    "gguf openpangu": Kind(_gguf_openpangu, target="m.gguf"),
    "odd": Kind(_chatty, odd=odd_model),
    "odd-int8": Kind(_chatty, options=(("quantization", "int8"),), odd=odd_model),
    "odd-int4": Kind(_chatty, options=(("quantization", "int4"),), odd=odd_model),
    "odd-head": Kind(_with_head, drafters=({"drafter": "head", "nodes": 5, "width": 3},), odd=odd_head),
}


def make_bases(folder: Path) -> None:
    """Make a folder for each kind, where it is not there yet."""
    for name, kind in KINDS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        if not any((folder / name).iterdir()):
            kind.make(folder / name / "model")

"""The folder of a published EAGLE-3 head: config.json beside model.safetensors."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastslow.draft.head.config import WHOLE, opened
from fastslow.draft.head.eagle import EagleConfig
from fastslow.draft.head.target import read_ends, stored_ends
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.host.files import is_file, read_object
from fastslow.engine.model.config import ModelConfig

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLAIN, PICKLED = "model.safetensors", "pytorch_model.bin"
EMBEDDING, OFFSETS, CHOSEN = "embed_tokens.weight", "d2t", "t2d"
UNUSED = ("verifier_norm.weight", "verifier_lm_head.weight")  # of the target, for training
CONVERT = (
    "from safetensors.torch import save_file; from torch import load; "
    f"save_file(load('{PICKLED}', weights_only=True), '{PLAIN}')"
)
Shapes = dict[str, tuple[int, ...]]


def read_eagle(folder: Path, target: ModelConfig) -> tuple[EagleConfig, dict[str, Tensor]]:
    """Config and weights of a head for a target, checked; `parts` names the weights, and "tokens" are
    the D that it drafts.

    Raises:
        ValueError: one sentence about what is wrong with the files, or does not fit the target.
    """
    try:
        raw = read_object(folder / "config.json")
        if not raw:
            raise ValueError("it has no config.json, so it is no published head")
        config = EagleConfig.from_json(raw, target)
        _check_format(folder)
        with ExitStack() as stack:
            file = stack.enter_context(opened(folder / PLAIN))
            return config, _read(config, file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"head {folder} cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"head {folder}: {error}") from None


def embedding_of(folder: Path, config: EagleConfig, target: Path) -> Tensor | RowFile:
    """The embedding [V, H] of a head that was read, its own or that of the target in a checkpoint folder.
    Rows are left in their file where they can be read from it."""
    path = folder / PLAIN
    with opened(path) as file:
        own = EMBEDDING in file.keys()  # noqa: SIM118 - the file is no dictionary
        if not own and config.shape.hidden != config.target_hidden:
            raise ValueError(
                f"head {folder} lacks tensor {EMBEDDING}, and its hidden_size is its own"
            )
        if own:
            stored = RowFile.of_tensor(path, EMBEDDING)
            return file.get_tensor(EMBEDDING) if stored is None else stored
    ends = stored_ends(target)
    return read_ends(target).embedding if ends is None else ends.embedding


def parts(config: EagleConfig) -> dict[str, Shapes]:
    """Name of a weight -> tensors of the file that make it, one below the other, and their shapes."""
    s, p, layer = config.shape, config.prefix, config.layer
    inner, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
    found: dict[str, Shapes] = {
        "embedding_norm": {f"{p}input_layernorm.weight": (s.hidden,)},
        "hidden_norm": {f"{p}hidden_norm.weight": (s.hidden,)},
        "mlp_norm": {f"{p}post_attention_layernorm.weight": (s.hidden,)},
        "norm": {"norm.weight": (s.hidden,)},
        "fuse": {"fc.weight": (s.hidden, config.features)},
        "head": {"lm_head.weight": (s.vocabulary, s.hidden)},
    }
    qkv = {"self_attn.q_proj": inner, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    for name, inputs, outputs, biased in (
        ("qkv", 2 * s.hidden, qkv, layer.qkv_bias),
        ("out", inner, {"self_attn.o_proj": s.hidden}, layer.out_bias),
        (
            "gate_up",
            s.hidden,
            dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), s.neurons),
            layer.mlp_bias,
        ),
        ("down", s.neurons, {"mlp.down_proj": s.hidden}, layer.mlp_bias),
    ):
        found[name] = {f"{p}{module}.weight": (n, inputs) for module, n in outputs.items()}
        if biased:
            found[f"{name}_bias"] = {f"{p}{module}.bias": (n,) for module, n in outputs.items()}
    if config.head_norms:
        found["query_norm"] = {f"{p}self_attn.q_norm.weight": (s.head_dim,)}
        found["key_norm"] = {f"{p}self_attn.k_norm.weight": (s.head_dim,)}
    if (width := config.normed_together) == config.features:
        found["features_norm"] = {"input_norm.weight": (width,)}
    elif width:
        each = (f"fc_norm.{n}.weight" for n in range(len(s.layers)))
        found["features_norm"] = dict.fromkeys(each, (width,))
    return found


def _check_format(folder: Path) -> None:
    if is_file(folder / PLAIN):
        return
    if is_file(folder / PICKLED):
        raise ValueError(
            f"{PICKLED} is not loaded, since such files may hold code: make {PLAIN} of it, in that "
            f'folder, by `python -c "{CONVERT}"`'
        )
    raise ValueError(f"it has no {PLAIN}")


def _read(config: EagleConfig, file: Any) -> dict[str, Tensor]:
    """The weights, each checked before it is read."""
    names = set(file.keys())
    found = parts(config)
    needed: Shapes = {name: shape for part in found.values() for name, shape in part.items()}
    whole: Shapes = {OFFSETS: (config.shape.vocabulary,), CHOSEN: (config.target_vocab,)}
    optional: Shapes = {EMBEDDING: (config.target_vocab, config.shape.hidden)}
    every = config.shape.vocabulary == config.target_vocab
    for name in sorted(names - set(UNUSED)):
        shape = {**needed, **optional, **whole}.get(name)
        if shape is None:
            raise ValueError(f"it has an unexpected tensor {name:.99}")
        if (size := tuple(file.get_slice(name).get_shape())) != shape:
            raise ValueError(f"tensor {name} is {list(size)}, not {list(shape)}")
    for name, shape in {**needed, **({} if every else {OFFSETS: whole[OFFSETS]})}.items():
        if name not in names:
            raise ValueError(f"it lacks tensor {name} of shape {list(shape)}")
    weights: dict[str, Tensor] = {}
    for part, shapes in found.items():
        tensors = [_typed(file, name, FLOATS, "floats") for name in shapes]
        weights[part] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    if config.normed_together:  # what the norm multiplies features with, `fc` may do
        weights["fuse"] = weights["fuse"].float() * weights.pop("features_norm").float()
    weights["tokens"] = _tokens(config, file, names)
    return weights


def _tokens(config: EagleConfig, file: Any, names: set[str]) -> Tensor:
    """int64 [D], the target's tokens in the order of the head's."""
    own = torch.arange(config.shape.vocabulary)
    if OFFSETS not in names:
        return own
    tokens = own + _typed(file, OFFSETS, WHOLE, "whole numbers").long()
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or most >= config.target_vocab:
        raise ValueError(
            f"{OFFSETS} leads to token {least if least < 0 else most}, outside the target's vocabulary "
            f"of {config.target_vocab}"
        )
    if len(tokens.unique()) < len(tokens):
        raise ValueError(f"{OFFSETS} leads to some token twice")
    if CHOSEN in names:
        chosen = _typed(file, CHOSEN, (torch.bool, *WHOLE), "truth values").bool()
        if int(chosen.sum()) != len(tokens) or not bool(chosen[tokens].all()):
            raise ValueError(f"{CHOSEN} and {OFFSETS} name different tokens")
    return tokens


def _typed(file: Any, name: str, dtypes: tuple[torch.dtype, ...], kind: str) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    if tensor.dtype not in dtypes:
        raise ValueError(f"tensor {name} is of {tensor.dtype}, and must hold {kind}")
    return tensor

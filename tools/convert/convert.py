"""A dense checkpoint becomes a MoGE checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.llm import LLM
from fastslow.models.dense import Dense, dense_config
from fastslow.models.folder import require_vacant
from fastslow.models.moge import write_moge
from fastslow.models.recipe import Recipe
from fastslow.tools.convert.calibrate import NeuronSplit, calibrate
from fastslow.tools.convert.options import ConvertOptions
from fastslow.tools.progress import Report, silent
from fastslow.tools.quantize.calibration import answered, prompts_of

ROW = 256  # tokens of a piece of a text file


def convert(
    dense_folder: Path, out: Path, options: ConvertOptions | None = None, report: Report = silent
) -> Path:
    """Turns a dense Llama-like checkpoint into a MoGE checkpoint (PanguProMoEForCausalLM).

    The FFN neurons that matter most become the shared expert; the others are dealt to one pool
    for each group, and each pool gives overlapping experts found by clustering calibration tokens.

    Args:
        dense_folder: LlamaForCausalLM or PanguEmbeddedForCausalLM folder of safetensors, with a
            tokenizer.json or tokenizer.model; tied or untied.
        out: folder to create; it appears only when complete.

    Raises:
        ValueError: the model is of another kind, a number does not fit it, or a text cannot be read.
    """
    require_vacant(out)
    options = options or ConvertOptions()
    inner = dense_config(dense_folder).intermediate_size
    split = NeuronSplit.of(inner, options.groups, options.experts, options.shared, options.width)
    report(0.0, "calibration text")
    texts = list(calibration_texts(dense_folder, options))
    dense = Dense(dense_folder, torch.float32)

    def done(layer: int) -> None:
        report((layer + 1) / dense.config.layers, "choosing experts")

    layout = calibrate(dense, texts, split, seed=options.seed, done=done)
    return write_moge(dense_folder, Recipe.untrained(layout), out, fast=options.fast)


def calibration_texts(folder: Path, options: ConvertOptions) -> Iterator[list[int]]:
    """Token ids: of the files up to half of the tokens, the rest are answers of the model.

    Raises:
        ValueError: a file cannot be read.
    """
    left = options.tokens
    tokenizer = load_tokenizer(folder)
    for path in options.text:
        try:
            ids = tokenizer.encode(path.read_text("utf-8"), add_special=False)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"text {str(path)!r} cannot be read: {error}") from None
        most = options.tokens // (2 * len(options.text))
        for start in range(0, min(len(ids), most), ROW):
            yield ids[start : min(start + ROW, most)]
            left -= len(ids[start : min(start + ROW, most)])
    with LLM(folder, remember=False, progress=False) as llm:
        for text in answered(llm, prompts_of(None, folder), seed=options.seed):
            yield text
            left -= len(text)
            if left <= 0:
                return

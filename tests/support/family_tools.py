"""Models of every family, on plain torch or on the CPU kernels."""

from pathlib import Path

import pytest
import texts
from engine_tools import Ask, Bench, Make, RandomDraft, answer

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.backends import loader
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import unsupported
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.probs import probs_at

KERNELS = (False, True)  # what tests of families run on


def load(folder: Path, kernels: bool, form: str = "float32") -> Model:
    """In a dtype; skips what the kernels do not run."""
    if kernels and (reason := unsupported(ModelConfig.from_folder(folder))) is not None:
        pytest.skip(reason)
    if kernels and not library.available():
        pytest.skip("the CPU kernels are not available")
    with pytest.MonkeyPatch.context() as patch:
        if not kernels:
            patch.setattr(library, "available", lambda: False)
        return loader.load_model(folder, form, "cpu", progress=False)


def check_drafts(model: Model) -> None:
    """In one batch, chains and trees change no token of plain decoding."""
    drafters: dict[str, Make] = {
        "ngram": lambda kv: NgramDraft(2, 1),
        "random": lambda kv: RandomDraft(),
        "skip": lambda kv: ModelDraft(model.layer_subset([0, 1]), BorrowedKV(kv), probs_at),
        "tree": lambda kv: ModelDraft(model.layer_subset([0, 1]), BorrowedKV(kv), probs_at, width=3),
    }
    bench, params = Bench(model, drafters), SamplingParams(max_tokens=24, ignore_eos=True)
    prompts = [tuple(texts.tokens_of(n, n, model.config.vocab_size)) for n in (5, 21, 9, 131)]
    asks = [Ask(prompt, params, kind) for prompt in prompts for kind in drafters]
    requests = bench.run(asks)
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in asks]
    assert sum(r.spec_stats.accepted for r in requests) > 0

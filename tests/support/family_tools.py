"""Models of every family, on plain torch or on the CPU kernels."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import texts
import torch
from torch import Tensor

from fastslow.engine.backends import loader
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.pieces.limits import unsupported
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state import running
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.model.config import ModelConfig

KERNELS = (False, True)  # what tests of families run on
LONG = texts.tokens_of(600)


def load(folder: Path, kernels: bool, form: str = "float32") -> Model:
    """In a dtype; skips what the kernels do not run."""
    if kernels and (reason := unsupported(ModelConfig.from_folder(folder))) is not None:
        pytest.skip(reason)
    if kernels and not library.available():
        pytest.skip("the CPU kernels are not available")
    with pytest.MonkeyPatch.context() as patch:
        if not kernels:
            patch.setattr(library, "available", lambda: False)
        model = loader.load_model(folder, form, "cpu", progress=False)
    assert isinstance(model, CpuDecoder) == kernels
    return model


def cuts(total: int, most: int) -> list[int]:
    """Random sizes of chunks, of which odd ones are not too long to be folded in a step later."""
    random, sizes = Random(total), list[int]()
    while total:
        limit = UNFOLDED - 1 if len(sizes) % 2 else most
        sizes.append(min(total, random.randint(1, limit)))
        total -= sizes[-1]
    return sizes


def check_however_cut(model: Model, expected: Tensor, alone: int = 600) -> None:
    """The text LONG has these log-probabilities: at once, by one token, in random chunks, and after a snapshot; and the
    same bits in all ways. alone: last tokens that run one by one."""

    def check(kv: KVCache, tokens: list[int], sizes: Sequence[int], request: int = 0) -> Tensor:
        found = texts.cached_logits(model, kv, tokens, sizes, request=request)
        kv.close(request)
        wanted = expected[len(tokens) - len(found) : len(tokens)]
        torch.testing.assert_close(found.double().log_softmax(-1), wanted, rtol=0, atol=1e-4)
        return found

    assert expected.std() > 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "EVERY", 64)
        whole = check(kv_cache_for(model, 40, 16, False), LONG, [600])
        for sizes in ([600 - alone] * (alone < 600) + [1] * alone, cuts(600, 90)):
            assert check(kv_cache_for(model, 40, 16, False), LONG, sizes).equal(whole)
        kv = kv_cache_for(model, 40, 16)
        check(kv, LONG[:300], [200, 30, 70])
        # goes on from the last snapshot
        assert check(kv, LONG, cuts(600 - 288, 90), request=1).equal(whole[288:])
        kv.check_integrity()

"""Recorded steps against the same steps run kernel by kernel."""

from __future__ import annotations

import math

import numpy as np
import torch

from fastslow.engine.backends.accelerator.decoder import PagedDecoder
from fastslow.engine.backends.accelerator.kv import BLOCK
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.types import Rows
from fastslow.models.locate import resolve_model
from fastslow.tools.check_device.report import CheckPlan, Finding
from fastslow.tools.forward import chain

SHAPES = ((1, 1), (1, 5), (3, 1), (8, 1), (8, 4), (60, 1))  # texts, rows of each


def recorded_steps(plan: CheckPlan) -> Finding:
    """Steps of several shapes: eager, recorded, and replayed with other numbers in them."""
    found = Finding("recorded steps against eager ones")
    model = load_model(resolve_model("abacus"), plan.dtype, plan.device, progress=False)
    if not isinstance(model, PagedDecoder) or not model.recorder.enabled:
        found.passed = None
        found.lines = [
            "no step is recorded here" + ("" if plan.device == "cpu" else ", see the log")
        ]
        return found
    slack = plan.slack(model.dtype)
    shapes = SHAPES[:3] if plan.quick else SHAPES
    worst, equal, steps = 0.0, 0, 0
    random = np.random.default_rng(0)
    for done, (count, rows) in enumerate(shapes):
        plan.say(done / len(shapes), f"{count} texts, {rows} rows of each")
        kv = kv_cache_for(model, count, BLOCK, False).storage
        read = 20
        texts = random.integers(5, model.config.vocab_size, (count, 4, read + rows)).tolist()
        for turn in range(4):  # 0 is not recorded yet, 1 is recorded, 2 and 3 are replayed
            both: list[torch.Tensor] = []
            for enabled in (False, True):
                parts = [texts[n][turn] for n in range(count)]
                slots = [np.arange(n * BLOCK, n * BLOCK + read + rows) for n in range(count)]
                before = [chain(t, s, 0, read) for t, s in zip(parts, slots)]
                after = [
                    chain(t, s, read, read + rows, outputs=range(rows))
                    for t, s in zip(parts, slots)
                ]
                model.recorder.enabled = False
                model.forward(Rows.of(before), kv)
                model.recorder.enabled = enabled
                both.append(model.forward(Rows.of(after), kv).logits)
            apart = float((both[0] - both[1]).abs().max())
            worst = max(worst, apart if math.isfinite(apart) else math.inf)
            equal += torch.equal(*both)
            steps += 1
    recorder = model.recorder
    found.figures = {
        "steps": steps,
        "equal_bits": equal,
        "largest_difference": worst if math.isfinite(worst) else None,
        "slack": slack,
        "recorded": recorder.recorded,
        "replays": recorder.replays,
        "failed": recorder.failed,
    }
    found.lines = [
        f"{steps} steps, {recorder.replays} replayed from {recorder.recorded} recordings",
        f"{equal} with the same bits, logits differ by {worst:.3g} at most (limit {slack:g})",
    ]
    if recorder.failed:
        found.lines.append(f"{recorder.failed} sizes could not be recorded, see the log")
    found.passed = worst <= slack and recorder.replays == 3 * len(shapes) and not recorder.failed
    found.advice = (
        "the log says which kernel cannot be recorded. Until it is mended answers are right but slow, "
        "unless the difference is above the limit: then do not use this device, and report this file"
    )
    return found

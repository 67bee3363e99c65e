"""The planner against this machine: predicted and measured seconds of steps of 1 to 128 rows.

    python benchmarks/planned.py --model smollm2-moge --dtype bfloat16 --out planned.json

The machine is probed as `fastslow plan --device this-cpu` probes it, just before the steps are timed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import probe
import torch

from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.cost_curve import CONTEXT, step_seconds
from fastslow.models.locate import resolve_model
from fastslow.tools.plan.device import probe as probe_device
from fastslow.tools.plan.step import HOST, ForwardWork, Precision, Setting

NAMES = {"bfloat16": ("bf16", "bf16"), "float32": ("float32", "float32")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-moge")
    parser.add_argument("--dtype", default="bfloat16", choices=NAMES)
    parser.add_argument("--quantization", default="none", choices=("none", "int8", "int4"))
    parser.add_argument("--threads", type=int, default=probe.physical_cores())
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    folder = resolve_model(asked.model)
    model = load_model(folder, asked.dtype, "cpu", quantization=asked.quantization)
    device = probe_device(asked.threads)
    weights, kv = NAMES[asked.dtype]
    precision = Precision.of(weights if asked.quantization == "none" else asked.quantization, kv)
    setting = Setting(ForwardWork.of(model.config), device, 1, precision, HOST)
    rows, seconds = step_seconds(model, None, f"planned {time.time()}")  # never a kept curve
    found = []
    print(f"{device.bandwidth / 1e9:.1f} GB/s, {device.half / 1e9:.0f} GFLOP/s in bfloat16")
    for n, measured in zip(rows, seconds):
        terms = setting.decode(1, n, CONTEXT)
        predicted = terms.seconds
        found.append({"rows": n, "predicted": predicted, "measured": measured})
        print(
            f"{n:4} rows  predicted {1000 * predicted:7.2f} ms  measured {1000 * measured:7.2f} ms  "
            f"{predicted / measured:.2f} x  most: {terms.binding}"
        )
    if asked.out is not None:
        header = probe.header(asked.threads)
        asked.out.write_text(json.dumps({**header, "steps": found}, indent=1), "utf-8")


if __name__ == "__main__":
    main()

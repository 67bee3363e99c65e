"""The planner against this machine: predicted and measured seconds of steps of 1 to 128 rows.

    python benchmarks/planned.py --model smollm2-moge --dtype bfloat16 --out planned.json

The machine is probed as `fastslow plan --device this-cpu` probes it, just before the steps are timed.
"""

from __future__ import annotations

import time

import torch
from figures import options, show, write

from fastslow.engine.backends.loader import load_model
from fastslow.models.locate import resolve_model
from fastslow.policies.speculation.cost_curve import CONTEXT, step_seconds
from fastslow.tools.plan.device import probe as probe_device
from fastslow.tools.plan.step import HOST, ForwardWork, Precision, Setting

NAMES = {"bfloat16": ("bf16", "bf16"), "float32": ("float32", "float32")}


def main() -> None:
    kind = {"model": "smollm2-moge", "dtype": "bfloat16", "quantization": "none"}
    args = options(__doc__, "threads", "out", **kind).parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(resolve_model(args.model), args.dtype, "cpu", quantization=args.quantization)
    device = probe_device()
    weights, kv = NAMES[args.dtype]
    precision = Precision.of(weights if args.quantization == "none" else args.quantization, kv)
    setting = Setting(ForwardWork.of(model.config), device, 1, precision, HOST)
    rows, seconds = step_seconds(model, None, f"planned {time.time()}")  # never a kept curve
    found, cells = [], []
    for n, measured in zip(rows, seconds):
        terms = setting.decode(1, n, CONTEXT)
        predicted = terms.seconds
        found.append({"rows": n, "predicted": predicted, "measured": measured})
        ms = (f"{1000 * predicted:.2f}", f"{1000 * measured:.2f}", f"{predicted / measured:.2f}")
        cells.append([str(n), *ms, terms.binding])
    probed = f"{device.bandwidth / 1e9:.1f} GB/s, {device.half / 1e9:.0f} GFLOP/s in bfloat16"
    show(["rows", "predicted ms", "measured ms", "ratio", "most of it"], cells, probed)
    write(args.out, steps=found)


if __name__ == "__main__":
    main()

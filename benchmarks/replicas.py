"""Replicas on this machine: nothing is lost, fast stays fast, simulations come true.

    python benchmarks/replicas.py killed [--answers 2000] [--kills 2]
    python benchmarks/replicas.py flood
    python benchmarks/replicas.py simulated [--counts 2,3] [--keep FOLDER]

killed: 64 clients, mixed modes, greedy and seeded, streamed and not; replicas are killed with -9 meanwhile. Every
answer must be there once, and be the one that an engine alone gives. flood: fast requests with a target, alone and
beside clients of deep ones. simulated: requests at random moments on several numbers of replicas and in several rounds,
and what `fastslow simulate` makes of them.

All run the command `fastslow serve MODEL --replicas N` and ask it over HTTP. Exit code 1 where something is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

from figures import console, options, write
from serve_load import flood, killed, simulated

PARTS = {"killed": killed, "flood": flood, "simulated": simulated}


def main() -> int:
    parser = options(__doc__, "out", model="smollm2-moge", repeat=3, seconds=30.0)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--counts", default="2,3", help="of replicas, for simulated")
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--flood", type=int, default=24, help="clients of deep answers")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--warm", type=float, default=120.0, help="seconds in which caches fill")
    parser.add_argument("--keep", type=Path, help="folder for the traces and costs of simulated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", nargs="*", default=[], help="options of `fastslow serve`")
    args = parser.parse_args()
    found, wrong = PARTS[args.part].run(args)
    write(args.out, model=args.model, found=found, wrong=wrong)
    for line in wrong[:20]:
        console().print(line, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

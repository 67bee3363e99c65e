"""Train abacus, a small MoGE model that thinks, or its draft model, from nothing.

    python examples/train_abacus.py --out abacus                     # about 90 minutes
    python examples/train_abacus.py --out abacus-draft --draft       # a few minutes
    python examples/train_abacus.py --out atlas --mix atlas --minutes 5 --rows 8

The model learns on tasks that it makes up as it goes (`examples/abacus/`): half of them are worked
out step by step between `[unused16]` and `[unused17]`, half are answered at once, as ` /no_think`
asks for. In some of the samples only a part of the expert groups runs, so that fast modes work.
Ctrl-C ends it early: the model is written as it is then.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from abacus.batches import END, Writer
from abacus.folder import train_tokenizer, write_folder
from abacus.task import SHARE
from abacus.tasks import MIXES
from abacus.trainer import Trainer

from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer

DRAFT = {"hidden": 96, "layers": 3, "heads": 3, "kv_heads": 3, "shared": 256, "groups": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--mix", choices=MIXES, default="abacus", help="what to learn (abacus)")
    parser.add_argument("--draft", action="store_true", help="the dense draft model instead")
    parser.add_argument("--minutes", type=float, default=0, help="of the processor (90, a draft 6)")
    parser.add_argument("--every", type=float, default=3, help="minutes between two looks")
    parser.add_argument("--rows", type=int, default=16, help="of 256 tokens in a step (16)")
    parser.add_argument("--seed", type=int, default=0, help="of tokenizer, weights and tasks (0)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.model to take, as a draft must")
    options = parser.parse_args()
    options.minutes = options.minutes or (6 if options.draft else 90)
    mix = MIXES[options.mix]
    shape = replace(mix.shape, **DRAFT) if options.draft else mix.shape
    given: Path | None = options.tokenizer
    tokenizer_file = given.read_bytes() if given else train_tokenizer(mix, options.seed)
    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(tokenizer_file)
        tokenizer = load_tokenizer(folder)
        template = load_template(folder, tokenizer)
    end = tokenizer.token_id(END)
    assert end is not None  # train_tokenizer puts it there
    writer = Writer(tokenizer, template, shape.groups, mix)
    trainer = Trainer(shape, writer, options.seed, options.rows)
    whole = trainer.run(options.minutes, options.every)
    write_folder(options.out, trainer.average, trainer.model.shape, tokenizer_file, end)
    facts = {
        "command": shlex.join(["python", "examples/train_abacus.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "licence": "Apache-2.0",
        "seed": options.seed,
        "held_out": f"prompts whose hash is 0 modulo {SHARE}; never trained on",
        "steps": trainer.done.steps,
        "tokens": trainer.done.tokens,
        "dense_until_step": trainer.done.split,
        "minutes": round(trainer.done.seconds / 60, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "curve": trainer.done.curve,
    }
    (options.out / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"wrote {options.out}" + ("" if whole else ", trained for less than it should be"))


if __name__ == "__main__":
    main()

"""A small model with a tokenizer, prompts for it, and made-up measurements, for tests of tuning."""

import json
from pathlib import Path
from typing import Any

from checkpoints import write_moge
from tokenizers_tiny import write_bpe

from fastslow.tools.tune.sample import Sample

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
VOCAB = 320
TOPICS = ("rain", "bread", "the <b>moon</b> & stars", "a router", "wool", "你好", "tea", "ships")


def write_model(folder: Path, **fields: Any) -> Path:
    """A tiny MoGE checkpoint that never ends an answer by itself."""
    write_bpe(folder, TEMPLATE, VOCAB)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return write_moge(folder, vocab=VOCAB, eos_token_id=None, sharded=False, **fields)


def write_prompts(path: Path, count: int = 8) -> Path:
    """Questions as a prompts file."""
    lines = [json.dumps({"prompt": f"Tell me about {topic}."}) for topic in TOPICS[:count]]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def sample(part: int, turn: int = 0, **fields: Any) -> Sample:
    """100 tokens in 10 seconds, one a step, unless told otherwise."""
    given: dict[str, Any] = {"tokens": 100, "seconds": 10.0, "forwards": 100}
    given |= {"answered": 101, "steps": 101, "drafted": 0, "accepted": 0}
    return Sample(part=part, turn=turn, **{**given, **fields})

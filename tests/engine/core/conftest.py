"""A model with every drafter and one that thinks, for all tests of the core."""

from pathlib import Path

import pytest
from checkpoints import write_moge
from engine_tools import Bench
from exact_tools import make_bench
from tokenizers_tiny import write_bpe

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)


@pytest.fixture(scope="session")
def moge(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("models"), "moge", eos_token_id=2)


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, to be read only."""
    folder = tmp_path_factory.mktemp("thinker")
    write_bpe(folder, THINKS, 320)
    return write_moge(folder, vocab=320, num_hidden_layers=2, hidden_size=32, num_experts=32)

"""The two kinds of tokenizer, for all tests of the engine."""

import pytest
from tokenizers_tiny import write_bpe, write_spm

from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Tokenizer


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    write_bpe(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("spm")
    write_spm(folder)
    return load_tokenizer(folder)

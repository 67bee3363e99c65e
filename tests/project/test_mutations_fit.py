"""Mutations that no longer fit the code would be noticed only by whoever runs them, in an hour."""

from pathlib import Path

import pytest

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_finds_its_code_once(mutation: Mutation) -> None:
    assert mutation.edits and mutation.tests
    for file, code, broken in mutation.edits:
        assert (ROOT / file).read_text("utf-8").count(code) == 1, (file, code)
        assert code != broken
    for test in mutation.tests:
        assert (ROOT / test.partition("::")[0]).is_file(), test

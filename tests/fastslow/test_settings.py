"""A file of settings belongs to the model that it was found with."""

import json
import shutil
from pathlib import Path

import pytest
from gate import open_llm
from refusals import refused
from tune_tools import write_model

from fastslow.engine.checkpoint.identity import model_digest
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.policies.auto import BUILT_IN, read_selector
from fastslow.policies.modes import load_modes
from fastslow.settings import add_settings, read_settings, write_settings

FOUR = RoutedUnits("groups", 4)
NGRAM = Speculation(drafter="ngram", nodes=2)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape with other weights, as a fine-tune is."""
    return write_model(tmp_path_factory.mktemp("models") / "other", seed=1)


def test_a_fingerprint_is_of_the_weights_not_of_the_folder(mine: Path, other: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(mine, tmp_path / "renamed")
    (copy / "fastslow.json").write_text("{}")
    assert model_digest(copy) == model_digest(mine) != model_digest(other)


def test_tuned_settings_are_taken_by_path_and_those_of_another_model_refused(
    mine: Path, other: Path, tmp_path: Path
) -> None:
    out, few = tmp_path / "tuned.json", SamplingParams(max_tokens=2)
    write_settings(out, "mine", NGRAM, {}, mine)
    said = "found with model 'mine' .* this model is 'other'"
    refused(said, open_llm, other, speculation=str(out))
    with open_llm(other) as llm, pytest.raises(ValueError, match=said):
        llm.generate("Hello", few, speculation=str(out))
    with open_llm(mine, speculation=str(out)) as llm:
        for wish, drafter in ((None, "ngram"), ("off", "off"), (str(out), "ngram")):
            assert llm.generate("Hello", few, speculation=wish).metrics.drafter == drafter
        with pytest.raises(ValueError, match=r"^settings file '.*nothing.json' cannot be read"):
            llm.generate("Hello", few, speculation=str(tmp_path / "nothing.json"))
    refused(r"^drafter='ngarm' is unknown", open_llm, mine, speculation="ngarm")


def test_every_part_of_a_file_is_checked(mine: Path, other: Path, tmp_path: Path) -> None:
    path, bot = tmp_path / "tuned.json", {"bot": {"base": "fast"}}
    add_settings(path, "mine", mine, auto=BUILT_IN.model_dump(mode="json"))
    add_settings(path, "mine", mine, modes=bot, speculation=dict(NGRAM))
    assert "bot" in load_modes(mine, FOUR, path) and read_selector(path, mine) == BUILT_IN
    assert read_settings(path, mine) == NGRAM
    before = path.read_text("utf-8")
    for use in (
        lambda: read_selector(path, other), lambda: read_settings(path, other), lambda: load_modes(other, FOUR, path),
        lambda: add_settings(path, "other", other, modes=bot),
    ):  # fmt: skip
        refused("found with model 'mine'", use)
    assert path.read_text("utf-8") == before


def test_a_file_of_an_older_version_is_taken_with_a_word(mine: Path, tmp_path: Path, logged: list[str]) -> None:
    path = tmp_path / "tuned.json"
    write_settings(path, "a model", NGRAM, {})
    assert read_settings(path, mine) == read_settings(path, mine) == NGRAM
    assert len(logged) == 1 and "names model 'a model' without a fingerprint" in logged[0]
    refused("names model 'a model', and this is 'mine'", add_settings, path, "mine", mine, modes={})


def test_presets_written_by_hand_fit_any_model(mine: Path, other: Path, tmp_path: Path, logged: list[str]) -> None:
    path = tmp_path / "my.json"
    path.write_text(json.dumps({"modes": {"bot": {"base": "fast"}}}))
    assert "bot" in load_modes(mine, FOUR, path) and "bot" in load_modes(other, FOUR, path) and logged == []

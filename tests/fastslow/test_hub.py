"""Models by their hub name, against a hub on 127.0.0.1."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eagle_tools import write_eagle
from gguf_tools import part_path, write_gguf
from hub import COMMIT, TOKEN, FakeHub, Repo, running_hub
from huggingface_hub import constants, hf_hub_download

from fastslow import LLM, SamplingParams, Speculation
from fastslow.models.hub.about import published
from fastslow.models.hub.name import HubName
from fastslow.models.hub.repository import RepoFile, Repository
from fastslow.models.locate import resolve_head, resolve_model
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.fields import _speculation_of
from fastslow.serve.api.limits import Caller
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.openai.completions import CompletionRequest

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
PROMPT = [5, 6, 7]
MODEL, WEIGHTS = "tiny/chat", "model-00002-of-00002.safetensors"


@pytest.fixture
def hub(tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """With one model, and an empty cache."""
    repo = Repo.of(tiny_chat)
    repo.files |= {"pytorch_model.bin": b"no", "modeling.py": b"no", "README.md": b"no"}
    with running_hub(tiny__chat=repo) as hub:
        patched = {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
        form = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patched |= {"HUGGINGFACE_CO_URL_TEMPLATE": form, "HF_HUB_OFFLINE": ""}
        for name, value in patched.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield hub


def refused(name: str, words: str, kind: type[Exception] | tuple[type[Exception], ...] = ValueError) -> None:
    with pytest.raises(kind, match=words) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def same_answers(one: str, two: Path) -> None:
    with LLM(one) as llm, LLM(two) as here:
        assert llm.generate(PROMPT, GREEDY).token_ids == here.generate(PROMPT, GREEDY).token_ids


def test_a_model_by_its_name(hub: FakeHub, tiny_chat: Path, logged: list[str]) -> None:
    same_answers(MODEL, tiny_chat)
    assert {"config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"} <= set(hub.fetched)
    assert not {"pytorch_model.bin", "modeling.py", "README.md"} & set(hub.fetched)
    said = ("PanguProMoEForCausalLM", "M parameters (fast", "switch none", "apache-2.0", "fetching")
    assert all(words in "".join(logged) for words in said)
    hub.asked.clear()
    assert resolve_model(f"https://huggingface.co/{MODEL}") == resolve_model(MODEL)
    assert not hub.fetched, "it is here already"


def test_names(hub: FakeHub, tiny_chat: Path, logged: list[str]) -> None:
    assert HubName.parse("hf.co/a/b@v1.0:Q4_K_M") == HubName("a/b", "v1.0", "Q4_K_M")
    assert str(HubName("a/b", "refs/pr/4", "Q8_0")) == "a/b@refs/pr/4:Q8_0"
    for path in ("../a", "a/b/c", "word", "/a/b", "./a", "a/model.gguf", "~/a"):
        refused(path, "no folder, no GGUF file, no hub name .* and no built-in")
    for odd in ("a b/c", "a/..", "a--b/c", "a/b@", "a/b.git", "a/b@../x", "a/b:../x", "a/b:", "é/b"):
        refused(odd, "is no name of a hub: that is owner/name")
    shutil.copytree(tiny_chat, MODEL)
    assert resolve_model(MODEL) == Path(MODEL) and "is here, on this machine" in logged[0]
    assert resolve_head(MODEL) == Path(MODEL) and logged[1] == logged[0] and not hub.asked


def test_offline_after_once_online(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        refused(MODEL, "HF_HUB_OFFLINE is set", RuntimeError)
    needed = [name for name in hub.repos[MODEL].files if name.endswith((".json", ".safetensors"))]
    path = Path([hf_hub_download(MODEL, name) for name in needed][-1]).parent
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert resolve_model(MODEL) == path and not logged, "what another program fetched"
    hub.asked.clear()
    assert resolve_model(f"{MODEL}@{COMMIT}") == path and not hub.asked, "a commit never changes"
    (path / "tokenizer.json").unlink()
    assert (resolve_model(f"{MODEL}@{COMMIT}") / "tokenizer.json").exists()
    hub.answer = "down"
    assert resolve_model(MODEL) == path and "503" in logged[0] and "what was fetched before runs" in logged[0]
    (path / WEIGHTS).unlink()  # a part is no model
    refused(MODEL, "503", RuntimeError)


def test_a_branch_that_moves(hub: FakeHub) -> None:
    old, repo = resolve_model(MODEL), hub.repos[MODEL]
    hub.asked.clear()
    repo.commit, repo.files["generation_config.json"] = "b" * 40, b'{"top_k": 7}'
    new = resolve_model(MODEL)
    assert new != old and (new / "generation_config.json").read_bytes() == b'{"top_k": 7}'
    assert hub.fetched == ["generation_config.json"], "what did not change is not fetched"


def test_who_may_not(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("tiny/none", "model=tiny/none is no folder here, and http.* has none of this name")
    refused(f"{MODEL}@v9", "has no such revision of tiny/chat")
    hub.repos[MODEL].gated = True
    refused(MODEL, f"{MODEL} is gated: accept its terms at http.*/{MODEL}, and set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(MODEL, "is gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve_model(MODEL).is_dir()
    hub.answer = "html"
    refused("tiny/other", "as no hub does: look at HF_ENDPOINT", RuntimeError)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("tiny/other", "cannot be reached .*: look at the network, or set HF_END", RuntimeError)
    for hub.answer in ("", "down"):  # a password is in no sentence
        monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("//", "//me:secret@"))
        refused("tiny/no", rf"tiny/no\b(?!.*secret).*{hub.url}(?!.*secret)", (ValueError, RuntimeError))


@pytest.mark.parametrize(("kind", "value", "words"), [
    ("answer", "html", "as no hub does"), ("answer", "loop", "cannot be reached"),
    ("answer", "gone", "lacks a file that it lists"),
    ("size", 250_000, "had 2.* bytes, not 250000, and was removed: try again"),
    ("size", 1000, "brings more than its 1000 bytes"),
    ("sha256", "0" * 64, "had the sha256 .*, not 0+, and was removed: try again"),
    ("etag", "../../../../elsewhere", "had its place outside of .*/cache, and was removed"), ("cut", 100_000, ""),
])  # fmt: skip
def test_a_file_that_does_not_come_as_listed(
    kind: str, value: Any, words: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastslow.models.hub.hubs.SLACK", 0)
    repo = hub.repos[MODEL]
    repo.wrong[kind, WEIGHTS] = value
    if words:
        refused(MODEL, words, RuntimeError)
    repo.wrong = repo.wrong if kind == "cut" else {}
    path = resolve_model(MODEL, progress=False)
    assert (path / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    assert not list(path.parents[1].glob("blobs/*.incomplete"))


def test_what_lies_in_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    path, outside = resolve_model(MODEL), tmp_path / "outside.json"
    shutil.copy(path / "config.json", outside)
    (path / "config.json").unlink()
    (path / "config.json").symlink_to(outside)
    refused(MODEL, "had its place outside of .*/cache, and was removed", RuntimeError)
    assert outside.exists() and resolve_model(MODEL) == path
    os.truncate(path / WEIGHTS, 100)
    refused(MODEL, "had 100 bytes, not .*, and was removed", RuntimeError)
    old, new = (path.parents[1] / "blobs" / f"x.{n}.incomplete" for n in range(2))
    old.write_bytes(b"half"), new.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert resolve_model(MODEL) == path
    assert not old.exists() and new.exists(), "another process may be at it"


def test_no_room(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    monkeypatch.setattr("fastslow.models.hub.fetch.free_memory", lambda _: 1000)
    with monkeypatch.context() as patch:
        patch.setattr("fastslow.models.hub.fetch.SPARE", 1 << 60)
        refused(MODEL, "takes 5.* KiB, and .* has .*: free some .*, or set HF_HOME", RuntimeError)
    path = resolve_model(MODEL, weights=False)
    assert (path / "tokenizer.json").exists() and WEIGHTS not in hub.fetched
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(MODEL, weights=False) == path
    refused(MODEL, "is not in the cache as a whole", RuntimeError)
    refused("tiny/none", "is not in the cache as a whole", RuntimeError)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    resolve_model(MODEL)
    assert any("1000 B of memory is free: try a smaller GGUF variant" in line for line in logged)


def chosen(names: str, place: object = None, variant: str = "", size: int = 10) -> str:
    """The files of weights, in a repository of these names whose index names one place."""
    files = {path: RepoFile(path, size) for path in names.split()}
    repo = Repository(HubName("o/n", variant=variant), COMMIT, files)
    repo.small()
    return " ".join(file.path for file in repo.weights(lambda _: {"weight_map": {"x": place}}))


def test_what_of_a_repository_runs() -> None:
    one, index = "model.safetensors", "model.safetensors.index.json a.safetensors b.bin"
    assert chosen(f"config.json {one} consolidated.safetensors onnx/{one}") == one
    assert chosen(index, "a.safetensors") == "a.safetensors"
    assert chosen(f"config.json draft.head {one}") == f"{one} draft.head", "else a part is a whole"
    with pytest.raises(ValueError, match="index.json has 100.0 GiB, and 64.0 MiB are the most"):
        chosen(index, size=100 << 30)
    for names, place, words in (
        (index, "c.safetensors", "names 'c.safetensors', no safetensors file of it"),
        (index, "b.bin", "names 'b.bin', no safetensors file of it"),
        (index, ["a.safetensors"], "no safetensors file of it"),
        ("config.json pytorch_model.bin", None, "may hold code and is never loaded"),
        ("model.onnx", None, "neither safetensors nor a GGUF file, but 1 files"),
    ):
        with pytest.raises(ValueError, match=words):
            chosen(names, place)


def test_variants() -> None:
    split = "BF16/M-BF16-00001-of-00002.gguf BF16/M-BF16-00002-of-00002.gguf"
    names = "M-Q4_K_M.gguf M-UD-Q4_K_XL.gguf mmproj-F16.gguf M.q8_0.gguf config.json"
    every = f"{names} {split} M-Q6_K-00001-of-00003.gguf"
    for variant in ("q4_k_m", "M-Q4_K_M.gguf"):
        assert chosen(every, variant=variant) == "M-Q4_K_M.gguf"
    assert chosen(every, variant="Q8_0") == "M.q8_0.gguf"
    assert chosen(every, variant="Q4_K_XL") == "M-UD-Q4_K_XL.gguf" and chosen(every, variant="BF16") == split
    drafts = "mtp-M-Q8_0.gguf mtp-M-Q4_0.gguf BF16/mtp-M.gguf"
    assert chosen(f"{every} {drafts}", variant="q4_k_m") == "M-Q4_K_M.gguf mtp-M-Q4_0.gguf"
    assert chosen(f"{every} {drafts}", variant="BF16") == f"{split} BF16/mtp-M.gguf"
    listed = r": o/n:BF16 \(20 B\), o/n:Q4_K_M \(10 B\), "
    refusals = {"": "needs a choice", "Q2_K": "is not there", "K_M": "is not there"}
    for variant, words in (refusals | {"Q6_K": "has 1 of 3 files"}).items():
        with pytest.raises(ValueError, match=words + (listed if variant in refusals else "")):
            chosen(every, variant=variant)
    with pytest.raises(ValueError, match="o/n:Q4_0 is not there: no GGUF file is"):
        chosen("model.safetensors", variant="Q4_0")


@pytest.mark.parametrize("parts", [1, 3])
def test_a_gguf_variant(parts: int, hub: FakeHub, tiny_dense: Path, tmp_path: Path) -> None:
    (there := tmp_path / "files").mkdir()
    first = write_gguf(tiny_dense, there / "M-Q8_0.gguf", parts=parts)
    write_gguf(tiny_dense, there / "M-F16.gguf")
    hub.repos["tiny/gguf"] = Repo.of(there, gguf={"architecture": "llama", "total": 99_000_000})
    refused("tiny/gguf", r"needs a choice: tiny/gguf:F16 \(.* KiB\), tiny/gguf:Q8_0")
    same_answers("tiny/gguf:Q8_0", first)
    assert hub.fetched == [part_path(Path("M-Q8_0.gguf"), n, parts).name for n in range(parts)]
    hub.repos["tiny/gguf"].gguf = {"architecture": "whisper"}
    refused("tiny/gguf:F16", "general.architecture 'whisper' does not run here: .*qwen3")
    config = {"architectures": ["OddForCausalLM"], "auto_map": {"AutoModel": "modeling.Odd"}}
    hub.repos[MODEL].files["config.json"] = json.dumps(config).encode()
    odd = "it comes with code, which is never run, and config.json: architecture 'OddForCausalLM'"
    refused(MODEL, f"^{MODEL} does not run here: {odd}")
    for section, words in (({"quant_method": "bnb"}, "'bnb'"), ({"quant_method": "gptq"}, "bits")):
        config = json.loads((tiny_dense / "config.json").read_text())
        hub.repos[MODEL].files["config.json"] = json.dumps(config | {"quantization_config": section}).encode()
        hub.repos[MODEL].commit = section["quant_method"][0].encode().hex() * 20
        refused(MODEL, f"does not run here: .*{words}")
    assert WEIGHTS not in hub.fetched, "nothing large was fetched for it"


def test_drafts_by_name(hub: FakeHub, tiny_dense: Path, tmp_path: Path, logged: list[str]) -> None:
    hub.repos |= {"tiny/draft": Repo.of(tiny_dense), "Qwen/Qwen3-1.7B": hub.repos[MODEL]}
    hub.repos["tiny/head"] = Repo.of(write_eagle(tmp_path / "head", tiny_dense, "speculators"))
    hub.repos["tiny/trained"] = Repo({"draft.head": b"x" * 5000})
    hub.repos["tiny/pickled"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"no"})
    with LLM(tiny_dense) as llm:
        plain = llm.generate(PROMPT, GREEDY, speculation="off")
        for named in (
            Speculation(drafter="model", model="tiny/draft", nodes=2),
            Speculation(drafter="head", head="tiny/head", nodes=2),
        ):
            drafted = llm.generate(PROMPT, GREEDY, speculation=named)
            assert drafted.token_ids == plain.token_ids and drafted.metrics.drafted > 0
        with pytest.raises(ValueError, match="pytorch_model.bin, which may hold code"):
            llm.generate([5], speculation=Speculation(drafter="head", head="tiny/pickled"))
    assert resolve_head("tiny/trained").name == "draft.head"
    assert published(HubName("unsloth/Qwen3-1.7B-GGUF", variant="Q4_K_M"))["heads"]
    assert not published(HubName("Qwen/Qwen3-1.7B-Base"))
    LLM("Qwen/Qwen3-1.7B").close()
    assert any("a published head exists: --head AngelSlim/Qwen3-1.7B_eagle3" in line for line in logged)


def test_a_server_offers_what_its_operator_named(hub: FakeHub, tiny_chat: Path, tmp_path: Path) -> None:
    hub.repos["tiny/head"] = Repo.of(write_eagle(tmp_path / "head", tiny_chat, "speculators"))
    settings = ServerSettings(heads=("tiny/head",), draft_models=(MODEL,))
    config = ServerConfig(model=f"{MODEL}@main", settings=settings)
    assert config.served_name == MODEL

    async def drafted(*wishes: Any) -> list[Any]:
        engine, found = await EngineSettings.of(config).open(), []
        loaded = list(hub.asked)
        for n, wish in enumerate(wishes):
            body = CompletionRequest(prompt=[5], speculation=wish, max_tokens=6)
            request = body.as_request(PROMPT, Caller(), engine.card, settings, id=str(n))
            found += [[piece async for piece in engine.stream(request)][-1].output]
        assert hub.asked == loaded, "all was fetched at the start"
        await engine.close()
        return [(output.metrics.drafter, output.metrics.drafted > 0) for output in found if output]

    # a fixed length: the adaptive one, as of who asks for nothing, may rightly draft nothing
    head, model = ({"drafter": name, "nodes": 2} for name in ("head", "model"))
    usual, *others = asyncio.run(drafted(None, head, model, {**model, "model": MODEL}))
    assert usual[0] == "suffix|head" and others == [("head", True), ("model", True), ("model", True)]
    assert _speculation_of("head", settings) == {"drafter": "head", "head": "tiny/head"}
    for name, value, words in (
        ("head", MODEL, "not for clients; it offers tiny/head"),
        ("model", "tiny/other", f"not for clients; it offers {MODEL}"),
        ("corpus", MODEL, "not for clients$"),
    ):
        with pytest.raises(ValueError, match=words):
            _speculation_of({name: value}, settings)

"""Models by their hub name, against a hub on 127.0.0.1."""

from __future__ import annotations

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
from hub import TOKEN, FakeHub, Repo, running_hub
from huggingface_hub import constants, hf_hub_download

from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.host.files import MOST_BYTES
from fastslow.models.hub.about import published
from fastslow.models.hub.name import HubName
from fastslow.models.hub.repository import RepoFile, Repository
from fastslow.models.locate import resolve_head, resolve_model
from fastslow.serve.api.config import ServerConfig, ServerSettings
from fastslow.serve.api.fields import _speculation_of
from fastslow.serve.api.limits import Caller
from fastslow.serve.openai.completions import CompletionRequest

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
MODEL = "tiny/chat"
WEIGHTS = "model-00002-of-00002.safetensors"


@pytest.fixture
def hub(tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """With one model, and an empty cache."""
    repo = Repo.of(tiny_chat)
    repo.files |= {"pytorch_model.bin": b"no", "modeling.py": b"no", "README.md": b"no"}
    with running_hub(tiny__chat=repo) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield hub


def refused(name: str, words: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=words) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)


def test_a_model_by_its_name(hub: FakeHub, tiny_chat: Path, logged: list[str]) -> None:
    with LLM(MODEL) as llm, LLM(tiny_chat) as here:
        one, two = (each.generate("abc", GREEDY) for each in (llm, here))
        assert one.token_ids == two.token_ids, "the files of the hub"
    needed = {"config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"}
    assert needed <= set(hub.fetched) and not {"pytorch_model.bin", "modeling.py"} & set(
        hub.fetched
    )
    said = "".join(logged)
    for words in (
        "PanguProMoEForCausalLM",
        "M parameters (fast: ",
        "switch none",
        "apache-2.0",
        "fetching",
    ):
        assert words in said
    hub.asked.clear()
    assert resolve_model(f"https://huggingface.co/{MODEL}") == resolve_model(MODEL)
    assert not hub.fetched, "it is here already"


@pytest.mark.parametrize(
    "name", ["a b/c", "a/..", "a--b/c", "a/b@", "a/b@../x", "a/b:../x", "a/b:", "é/b"]
)
def test_odd_names(name: str, hub: FakeHub) -> None:
    refused(name, "is no name of a hub: that is owner/name")
    assert not hub.asked


def test_names() -> None:
    assert HubName.parse("hf.co/a/b@v1.0:Q4_K_M") == HubName("a/b", "v1.0", "Q4_K_M")
    assert str(HubName("a/b", "refs/pr/4", "Q8_0")) == "a/b@refs/pr/4:Q8_0"
    for path in ("../a", "a/b/c", "word", "/a/b", "./a", "a/model.gguf", "~/a"):
        assert HubName.parse(path) is None
    refused("a/b/c", "no folder, no GGUF file, no hub name .* and no built-in")


def test_a_folder_of_that_name_wins(hub: FakeHub, tiny_chat: Path, logged: list[str]) -> None:
    shutil.copytree(tiny_chat, MODEL)
    assert resolve_model(MODEL) == Path(MODEL)
    assert not hub.asked and "is a folder here" in logged[0]


def test_offline_after_once_online(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(MODEL, "HF_HUB_OFFLINE is set", RuntimeError)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = resolve_model(MODEL)
    logged.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(MODEL) == path and not logged
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.down = True
    assert resolve_model(MODEL) == path and "503" in logged[0]
    assert "what was fetched before runs" in logged[0]
    (path / WEIGHTS).unlink()  # a part is no model
    refused(MODEL, "503", RuntimeError)
    hub.down = False
    assert resolve_model(MODEL) == path


def test_a_commit_is_not_asked_for_twice(hub: FakeHub) -> None:
    named = f"{MODEL}@{'a' * 40}"
    path = resolve_model(named)
    hub.asked.clear()
    assert resolve_model(named) == path and not hub.asked


def test_a_branch_that_moves(hub: FakeHub, tiny_chat: Path) -> None:
    old = resolve_model(MODEL)
    repo = hub.repos[MODEL]
    repo.revisions, before = {"main": "b" * 40}, len(hub.fetched)
    repo.files["generation_config.json"] = b'{"top_k": 7}'
    new = resolve_model(MODEL)
    assert new != old and json.loads((new / "generation_config.json").read_text()) == {"top_k": 7}
    assert hub.fetched[before:] == ["generation_config.json"], "what did not change is not fetched"


def test_files_that_others_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [name for name in hub.repos[MODEL].files if name.endswith((".json", ".safetensors"))]
    path = Path([hf_hub_download(MODEL, name) for name in needed][-1]).parent
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(MODEL) == path


def test_who_may_not(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("tiny/none", "model=tiny/none is no folder here, and http.* has none of this name")
    refused(f"{MODEL}@v9", "has no such revision of tiny/chat")
    hub.repos[MODEL].gated = True
    refused(MODEL, f"{MODEL} is gated: accept its terms at http.*/{MODEL}, and set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(MODEL, "is gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve_model(MODEL).is_dir()


@pytest.mark.parametrize("odd", ["html", "loop", "gone"])
def test_answers_of_no_hub(odd: str, hub: FakeHub) -> None:
    hub.repos[MODEL].odd[WEIGHTS] = odd
    said = {
        "html": "as a hub does",
        "loop": "cannot be reached",
        "gone": "lacks a file that it lists",
    }[odd]
    refused(MODEL, said, RuntimeError)
    hub.odd = "html"
    refused("tiny/other", "as a hub does: look at HF_ENDPOINT", RuntimeError)


def test_nobody_listens(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(MODEL, r"cannot be reached .*: look at the network, or set HF_ENDPOINT", RuntimeError)


@pytest.mark.parametrize("wrong", ["sizes", "hashes"])
def test_a_file_that_is_not_as_listed(wrong: str, hub: FakeHub) -> None:
    kept = getattr(hub.repos[MODEL], wrong)
    kept[WEIGHTS] = 123_456 if wrong == "sizes" else "0" * 64
    refused(MODEL, f"{WEIGHTS} had .* not .*, and was removed: try again", RuntimeError)
    kept.clear()
    path = resolve_model(MODEL)
    assert (path / WEIGHTS).read_bytes() == hub.repos[MODEL].files[WEIGHTS]


def test_a_file_without_end(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslow.models.hub.hubs.SLACK", 0)
    hub.repos[MODEL].sizes[WEIGHTS] = 1000
    refused(MODEL, f"{WEIGHTS} brings more than the 1000 bytes that its hub lists", RuntimeError)


def test_a_connection_that_is_cut(hub: FakeHub) -> None:
    hub.repos[MODEL].cut[WEIGHTS] = 100_000
    path = resolve_model(MODEL, progress=False)
    assert (path / WEIGHTS).read_bytes() == hub.repos[MODEL].files[WEIGHTS]
    assert not list(path.parents[1].glob("blobs/*.incomplete"))


def test_a_link_out_of_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    path = resolve_model(MODEL)
    outside = tmp_path / "outside.json"
    shutil.copy(path / "config.json", outside)
    (path / "config.json").unlink()
    (path / "config.json").symlink_to(outside)
    refused(MODEL, "had its place outside of .*/cache, and was removed", RuntimeError)
    assert outside.exists() and resolve_model(MODEL) == path
    hub.repos[MODEL].odd[WEIGHTS] = "../../../../elsewhere"  # an ETag names the file
    hub.repos[MODEL].revisions = {"main": "c" * 40}
    refused(MODEL, "had its place outside of .*/cache, and was removed", RuntimeError)


def test_what_a_killed_process_left(hub: FakeHub) -> None:
    blobs = resolve_model(MODEL).parents[1] / "blobs"
    old, new = blobs / "x.1.incomplete", blobs / "x.2.incomplete"
    old.write_bytes(b"half"), new.write_bytes(b"half")
    os.utime(old, (1, 1))
    resolve_model(MODEL)
    assert not old.exists() and new.exists(), "another process may be at it"


def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastslow.models.hub.fetch.SPARE", 1 << 60)
    refused(MODEL, "takes 5.* KiB, and .* has .*: free some of it, or set HF_HOME", RuntimeError)
    assert WEIGHTS not in hub.fetched


def test_no_room_in_memory(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr("fastslow.models.hub.fetch.free_memory", lambda _: 1000)
    resolve_model(MODEL)
    assert any("1000 B of memory is free: try a smaller GGUF variant" in line for line in logged)


def listing(*paths: str, variant: str = "", **sizes: int) -> Repository:
    name = HubName("o/n", variant=variant)
    return Repository(
        name, "a" * 40, {p: RepoFile(p, sizes.get(p.partition(".")[0], 10)) for p in paths}
    )


def test_what_of_a_repository_runs(hub: FakeHub) -> None:
    def weights(repo: Repository, index: object = None) -> list[str]:
        return [file.path for file in repo.weights(lambda _: {"weight_map": index})]

    whole = (
        "config.json",
        "model.safetensors",
        "consolidated.safetensors",
        "onnx/model.safetensors",
    )
    assert weights(listing(*whole)) == ["model.safetensors"]
    index = ("model.safetensors.index.json", "a.safetensors", "b.safetensors")
    assert weights(listing(*index), {"x": "a.safetensors"}) == ["a.safetensors"]
    for names, places, words in (
        (index, {"x": "c.safetensors"}, "puts tensors into 'c.safetensors', which is not there"),
        (index, {"x": 1}, "puts tensors into 1, which is not there"),
        (("config.json", "pytorch_model.bin"), None, "may hold code and is never loaded"),
        (("model.onnx",), None, "has files such as model.onnx: it takes safetensors"),
        ((), None, "has no files"),
    ):
        with pytest.raises(ValueError, match=words):
            weights(listing(*names), places)
    with pytest.raises(ValueError, match="index.json has 100.0 GiB, and 64.0 MiB are the most"):
        listing(*index, model=100 << 30).small()
    assert MOST_BYTES == 64 << 20


def test_variants() -> None:
    def chosen(variant: str, *more: str) -> list[str]:
        names = ("M-Q4_K_M.gguf", "M-UD-Q4_K_XL.gguf", "mmproj-F16.gguf", "M.q8_0.gguf", *more)
        split = ("BF16/M-BF16-00001-of-00002.gguf", "BF16/M-BF16-00002-of-00002.gguf")
        repo = listing(*names, *split, "config.json", variant=variant)
        return [file.path for file in repo.weights(lambda _: {})]

    assert chosen("q4_k_m") == ["M-Q4_K_M.gguf"] and chosen("Q8_0") == ["M.q8_0.gguf"]
    assert chosen("Q4_K_XL") == ["M-UD-Q4_K_XL.gguf"]
    assert len(chosen("BF16")) == 2 and chosen("M-Q4_K_M.gguf") == ["M-Q4_K_M.gguf"]
    for variant, words in (
        ("", "needs a choice"),
        ("Q2_K", "is not there"),
        ("K_M", "is not there"),
    ):
        with pytest.raises(ValueError, match=rf"{words}: o/n:BF16 \(20 B\), o/n:Q4_K_M \(10 B\), "):
            chosen(variant)
    with pytest.raises(ValueError, match="has 1 of the 3 files of M-Q6_K"):
        chosen("Q6_K", "M-Q6_K-00001-of-00003.gguf")
    with pytest.raises(ValueError, match="o/n:Q4_0 is not there: no GGUF file is"):
        listing("model.safetensors", variant="Q4_0").weights(lambda _: {})


@pytest.mark.parametrize("parts", [1, 3])
def test_a_gguf_variant(parts: int, hub: FakeHub, tiny_dense: Path, tmp_path: Path) -> None:
    (there := tmp_path / "files").mkdir()
    first = write_gguf(tiny_dense, there / "M-Q8_0.gguf", parts=parts)
    write_gguf(tiny_dense, there / "M-F16.gguf")
    hub.repos["tiny/gguf"] = Repo.of(there, gguf={"architecture": "llama", "total": 99_000_000})
    refused("tiny/gguf", r"needs a choice: tiny/gguf:F16 \(.* KiB\), tiny/gguf:Q8_0")
    with LLM("tiny/gguf:Q8_0") as llm, LLM(first) as here:
        one, two = (each.generate([5, 6, 7], GREEDY) for each in (llm, here))
    assert one.token_ids == two.token_ids
    assert hub.fetched == [part_path(Path("M-Q8_0.gguf"), n, parts).name for n in range(parts)]
    hub.repos["tiny/gguf"].gguf = {"architecture": "whisper"}
    refused("tiny/gguf:F16", "general.architecture 'whisper' is not one of the known")


def test_a_family_that_does_not_run(hub: FakeHub) -> None:
    config = {"architectures": ["OddForCausalLM"], "auto_map": {"AutoModel": "modeling.Odd"}}
    hub.repos[MODEL].files["config.json"] = json.dumps(config).encode()
    refused(MODEL, "it comes with code, which is never run, and .*architecture 'OddForCausalLM'")
    assert WEIGHTS not in hub.fetched, "nothing large was fetched for it"


def test_a_draft_model_and_a_head(
    hub: FakeHub, tiny_dense: Path, tmp_path: Path, logged: list[str]
) -> None:
    hub.repos["tiny/draft"] = Repo.of(tiny_dense)
    hub.repos["tiny/head"] = Repo.of(write_eagle(tmp_path / "head", tiny_dense, "speculators"))
    hub.repos["tiny/pickled"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"no"})
    with LLM(tiny_dense) as llm:
        plain = llm.generate([5, 6, 7], GREEDY, speculation="off")
        for settings in (
            Speculation(drafter="model", model="tiny/draft", nodes=2),
            Speculation(drafter="head", head="tiny/head", nodes=2),
        ):
            drafted = llm.generate([5, 6, 7], GREEDY, speculation=settings)
            assert drafted.token_ids == plain.token_ids and drafted.metrics.drafted > 0
        with pytest.raises(ValueError, match="pytorch_model.bin, which may hold code"):
            llm.generate([5], speculation=Speculation(drafter="head", head="tiny/pickled"))


def test_what_is_published(
    hub: FakeHub, tiny_chat: Path, tmp_path: Path, logged: list[str]
) -> None:
    assert published(HubName("unsloth/Qwen3-1.7B-GGUF", variant="Q4_K_M"))["heads"]
    assert not published(HubName("Qwen/Qwen3-1.7B-Base"))
    hub.repos["Qwen/Qwen3-1.7B"] = hub.repos[MODEL]
    LLM("Qwen/Qwen3-1.7B").close()
    assert any(
        "a published head exists: --head AngelSlim/Qwen3-1.7B_eagle3" in line for line in logged
    )
    head = tmp_path / "draft_head.safetensors"
    head.write_bytes(b"x" * 5000)
    hub.repos["tiny/trained"] = Repo({head.name: head.read_bytes()})
    assert resolve_head("tiny/trained").name == head.name


def test_a_server_offers_what_its_operator_named(
    hub: FakeHub, tiny_chat: Path, tmp_path: Path
) -> None:
    hub.repos["tiny/head"] = Repo.of(write_eagle(tmp_path / "head", tiny_chat, "speculators"))
    settings = ServerSettings(heads=("tiny/head",), draft_models=(MODEL,))
    config = ServerConfig(model=f"{MODEL}@main", settings=settings)
    assert config.served_name == MODEL

    async def drafted(*wishes: Any) -> list[int]:
        engine = await config.engine.open()
        loaded, found = list(hub.asked), []
        for n, wish in enumerate(wishes):
            body = CompletionRequest(prompt=[5], speculation=wish, max_tokens=6)
            request = body.as_request([5, 6, 7], Caller(), engine.card, settings, id=str(n))
            last = [piece async for piece in engine.stream(request)][-1].output
            found.append(0 if last is None else last.metrics.drafted)
        assert hub.asked == loaded, "all was fetched at the start"
        await engine.close()
        return found

    named = {"drafter": "model", "model": MODEL, "nodes": 2}
    assert all(asyncio.run(drafted(None, "head", "model", named)))
    for name, value, words in (
        ("head", MODEL, "not for clients; it offers tiny/head"),
        ("model", "tiny/other", f"not for clients; it offers {MODEL}"),
        ("corpus", MODEL, "not for clients$"),
    ):
        with pytest.raises(ValueError, match=words):
            _speculation_of({name: value}, settings)


def test_what_a_model_is_needs_no_weights(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve_model(MODEL, weights=False)
    assert (path / "tokenizer.json").exists() and not (path / WEIGHTS).exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(MODEL, weights=False) == path
    refused(MODEL, "is not in the cache as a whole", RuntimeError)

"""Drafts of a model's own layer for multi-token prediction, on every backend and by every spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import checkpoints
import mtp_tools
import pytest
import texts
import torch
from engine_tools import Ask, Bench, RandomDraft, Setting, answer
from fastapi.testclient import TestClient
from gguf import GGMLQuantizationType as Kind
from gguf_hybrid import write_hybrid
from gguf_tools import write_gguf
from gguf_writer import matrices
from layer_fuzz import LayerFuzz
from mtp_tools import BACKENDS, CONFIGS, VOCAB, ReferenceMtp, SpiedMtp
from refusals import refused

from fastslow import LLM, Speculation
from fastslow.draft.registry import check_drafter
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format, PackedMatrix
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.parallel.sharding import Parallel, RankShard
from fastslow.engine.params import SamplingParams
from fastslow.engine.types import RequestView, Tree
from fastslow.serve.app import create_app
from fastslow.serve.engines.local import LocalEngine

PROMPTS = [tuple(texts.tokens_of(n, n, VOCAB)) for n in (3, 21, 9, 40)]
GREEDY = SamplingParams(max_tokens=16, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=16, ignore_eos=True, temperature=0.8)
PAIRS = [
    *(("torch", kind) for kind in CONFIGS if kind != "mimo"), ("kernels", "mimo"),
    *product(("kernels", "accelerator"), ("numbered", "apart", "turned", "pangu v2", "three")),
]  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Model]]:
    """A checkpoint and its model, by backend and spelling."""
    made: dict[tuple[str, str], tuple[Path, Model]] = {}

    def find(backend: str, kind: str) -> tuple[Path, Model]:
        if (backend, kind) not in made:
            folder = mtp_tools.write_mtp(tmp_path_factory.mktemp("mtp"), kind)
            made[backend, kind] = folder, BACKENDS[backend](folder)
        return made[backend, kind]

    return find


def bench_of(model: Model, spied: list[SpiedMtp] | None = None) -> Bench:
    """With chains, trees, and drafts of random tokens."""

    def spy(drafter: SpiedMtp) -> SpiedMtp:
        if spied is not None:
            spied.append(drafter)
        return drafter

    return Bench(model, {
        "mtp": lambda kv: spy(SpiedMtp(model, kv)), "mtp tree": lambda kv: SpiedMtp(model, kv, width=3),
        "random": lambda kv: RandomDraft(),
    })  # fmt: skip


@pytest.mark.parametrize(("backend", "kind"), PAIRS)
def test_drafts_are_the_reference_chains(
    backend: str, kind: str, opened: Callable[[str, str], tuple[Path, Model]]
) -> None:
    """In a batch, over chunks of prompts and after rejected drafts."""
    (folder, model), spied = opened(backend, kind), list[SpiedMtp]()
    plain = ReferenceMtp(folder)
    asks = [Ask(prompt, GREEDY, "mtp", 4) for prompt in PROMPTS]
    bench_of(model, spied).run(asks, Setting(prompt_rows=16))
    made = spied[0].made
    assert len(made) > 20
    for tokens, tree in made[::3]:
        assert list(tree.tokens) == plain.chain(tokens, len(tree.tokens))
    assert max(len(tree.tokens) for _, tree in made) >= 3


@pytest.mark.parametrize(("backend", "kind"), [*product(BACKENDS, ("numbered", "three", "pangu v2"))])
def test_drafts_change_no_token(backend: str, kind: str, opened: Callable[[str, str], tuple[Path, Model]]) -> None:
    """Chains and trees beside other drafters, after a prefix hit, and where pages are short. Kinds that are left out
    differ in what they draft alone."""
    bench = bench_of(opened(backend, kind)[1])
    asks = [Ask(p, GREEDY, name, 5) for p in PROMPTS for name in ("mtp", "mtp tree", "random", "off")]
    expected = [answer(bench.alone(ask)) for ask in asks]
    blocks = backend == "accelerator"
    few = Setting(pages=8) if blocks else Setting(pages=40)
    for setting, warm in ((Setting(), ()), (Setting(), asks[::3]), (few, ())):
        requests = bench.run(asks, setting, warm)
        assert [answer(r) for r in requests] == expected
    assert blocks or any(r.spec_stats.preemptions for r in requests)


def test_sampled_drafts_have_probabilities(opened: Callable[[str, str], tuple[Path, Model]]) -> None:
    spied: list[SpiedMtp] = []
    bench_of(opened("torch", "numbered")[1], spied).run([Ask(p, SAMPLED, "mtp", 3) for p in PROMPTS])
    assert all(tree.probs is not None for _, tree in spied[0].made)
    seeded = [Ask(p, SAMPLED, "mtp", 3, rule="reproducible", seed=n) for n, p in enumerate(PROMPTS)]
    bench = bench_of(opened("torch", "numbered")[1])
    assert [answer(r) for r in bench.run(seeded)] == [answer(bench.alone(ask)) for ask in seeded]


def test_the_likeliest_path_of_a_tree_is_the_chain(opened: Callable[[str, str], tuple[Path, Model]]) -> None:
    """Of several heads, each runs all nodes so far."""
    (folder, model), spied = opened("torch", "three"), list[SpiedMtp]()
    plain = ReferenceMtp(folder)

    def spy(kv: KVCache) -> SpiedMtp:
        spied.append(SpiedMtp(model, kv, width=2))
        return spied[-1]

    Bench(model, {"tree": spy}).run([Ask(prompt, GREEDY, "tree", 12) for prompt in PROMPTS])
    depths = []
    for tokens, tree in spied[0].made[::4]:
        path, node = list[int](), -1
        while node in tree.parents:
            node = tree.parents.index(node)  # the likeliest comes first
            path.append(tree.tokens[node])
        assert path == plain.chain(tokens, len(path))
        depths.append(len(path))
    assert len(depths) > 4 and max(depths) > 3


@pytest.mark.parametrize(
    ("backend", "kind"),
    [*((backend, "numbered") for backend in BACKENDS), *((backend, "three") for backend in ("kernels", "accelerator"))],
)
def test_what_the_layer_predicts_is_accepted(backend: str, kind: str, tmp_path: Path) -> None:
    model = BACKENDS[backend](mtp_tools.repeat_itself(tmp_path, kind))
    for name in ("mtp", "mtp tree"):
        requests = bench_of(model).run([Ask(p, GREEDY, name, 3) for p in PROMPTS])
        stats = [request.spec_stats for request in requests]
        assert all(s.accepted >= 11 for s in stats), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_other_texts_are_not_seen(backend: str, opened: Callable[[str, str], tuple[Path, Model]]) -> None:
    """A prefix that was read without drafts has no rows of the layer: what lies there changes no draft."""
    model = opened(backend, "numbered")[1]
    found = []
    for noise in (0.0, 3.0):
        spied: list[SpiedMtp] = []
        bench = bench_of(model, spied)
        core = bench.core(asks=[Ask(PROMPTS[3], drafter="mtp")])
        for side in core.kv.storage.sides:
            side[-1].copy_(side[-1] + noise * torch.randn(side[-1].shape))
        for number, name in enumerate(("off", "mtp")):
            core.add(bench.request(number, Ask(PROMPTS[3], GREEDY, name, 4)))
            while not core.idle:
                core.step()
        found.append([(tokens, list(tree.tokens)) for tokens, tree in spied[0].made])
    assert found[0] == found[1] and found[0]


def test_a_prefix_hit_keeps_the_rows(opened: Callable[[str, str], tuple[Path, Model]]) -> None:
    """The state before the first row behind it is not known: that row is there only where the page held the same."""
    folder, model = opened("torch", "numbered")
    other, plain = (*PROMPTS[3][:22], *PROMPTS[1][:9]), ReferenceMtp(folder)
    for prompt, unknown in ((PROMPTS[3], []), (other, [20])):
        spied: list[SpiedMtp] = []
        bench_of(model, spied).run([Ask(prompt, GREEDY, "mtp", 4)], warm=[Ask(PROMPTS[3], GREEDY, "mtp", 4)])
        sizes = [len(tokens) for tokens, _ in spied[0].made]
        second = next(n for n in range(1, len(sizes)) if sizes[n] < sizes[n - 1])
        made = spied[0].made[second:]
        assert len(made) > 4
        for tokens, tree in made[::3]:
            assert list(tree.tokens) == plain.chain(tokens, len(tree.tokens), unknown)


@pytest.mark.parametrize(
    ("backend", "kind"), [*((b, "numbered") for b in BACKENDS), ("torch", "three"), ("kernels", "three")]
)
def test_after_a_rest_rows_begin_anew(
    backend: str, kind: str, opened: Callable[[str, str], tuple[Path, Model]]
) -> None:
    """Tokens that came while it rested have no rows, and none is made up for them. Of three heads the first two draft at
    once, the third a step later."""
    (folder, model), spied = opened(backend, kind), list[SpiedMtp]()
    bench = bench_of(model, spied)
    core = bench.core(asks=[Ask(PROMPTS[1], drafter="mtp")])
    request = bench.request(0, Ask(PROMPTS[1], SamplingParams(max_tokens=40, ignore_eos=True), "mtp", 3))
    core.add(request)
    usual, rests = core.drafter.propose, range(26, 36)

    def propose(batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return usual(batch, [n * (len(r.tokens) not in rests) for r, n in zip(batch, nodes)])

    core.drafter.propose = propose  # type: ignore[method-assign]
    gaps: list[int] = []
    while not core.idle:
        core.step()
        known = spied[0]._texts.get(0)
        if known is not None and known.end < len(request.tokens):
            gaps = [*range(known.rows[0].first + known.rows[0].done, len(request.tokens))]
    plain, after = ReferenceMtp(folder), [x for x in spied[0].made if len(x[0]) > rests.stop]
    assert len(gaps) > 5 and len(after) > 3
    assert len(after[0][0]) <= rests.stop + 1 and len(after[0][1].tokens) == (2 if kind == "three" else 3)
    for tokens, tree in after[:: 1 if kind == "three" else 2]:
        assert list(tree.tokens) == plain.chain(tokens, len(tree.tokens), gaps)


def test_other_drafters_of_such_a_model(opened: Callable[[str, str], tuple[Path, Model]]) -> None:
    model = opened("kernels", "apart")[1]
    LayerFuzz(model, model).check(20)


def test_the_name_over_http_and_in_auto(tmp_path: Path) -> None:
    body = {"model": "tiny", "prompt": list(PROMPTS[2]), "max_tokens": 12, "temperature": 0}
    with LLM(mtp_tools.repeat_itself(tmp_path), kv_memory="8MiB") as llm:
        client = TestClient(create_app(LocalEngine(llm, "tiny")), base_url="http://localhost")
        plain, drafted = (
            client.post("/v1/completions", json={**body, "speculation": wish})
            for wish in ("off", {"drafter": "mtp", "nodes": 3})
        )
        assert drafted.status_code == 200, drafted.text
        assert drafted.json()["metrics"]["by_drafter"]["mtp"]["accepted"] > 0
        usage, expected = (answer.json()["usage"]["completion_tokens"] for answer in (drafted, plain))
        assert usage == expected
        assert check_drafter(Speculation(), RoutedUnits.of(llm.model.config), ["mtp"]) == ["suffix", "mtp"]


def test_without_the_tensors_there_is_no_layer(tmp_path: Path, logged: list[str]) -> None:
    found = {n: x for n, x in mtp_tools.table("apart").items() if n != "mtp.fc.weight"}
    folder = checkpoints.write(tmp_path, CONFIGS["apart"], found)
    model = load_model(folder, progress=False)
    assert "which does not run: tensor mtp.fc.weight is missing" in "".join(logged)
    assert model.config.mtp is None and model.mtp is None and len(model.config.state_layout.layers) == 2
    with LLM(folder, kv_memory="8MiB") as llm:
        refused("^drafter='mtp' needs a model with a layer", llm.generate, [[5, 6]], speculation="mtp")


@pytest.mark.parametrize(("kind", "own"), [("apart", "mtp.layers"), ("numbered", "model.layers")])
def test_layers_that_the_config_does_not_have_do_not_draft(
    kind: str, own: str, tmp_path: Path, logged: list[str]
) -> None:
    first = {"mtp.layers": 0, "model.layers": 2}[own]
    found = mtp_tools.table(kind)
    more = {
        n.replace(f"{own}.{first}", f"{own}.{first + 1}"): x.clone() for n, x in found.items() if f"{own}.{first}." in n
    }
    for number, tensors in enumerate((found, found | more)):
        model = load_model(checkpoints.write(tmp_path / f"{number}", CONFIGS[kind], tensors), progress=False)
        assert model.mtp is not None
        said = "has more MTP layers than config.json says, 1: the last of these drafts all further tokens"
        assert (said in "".join(logged)) == bool(number)


def test_the_layer_is_packed_as_the_others_are(tmp_path: Path) -> None:
    """4 bits beside 4 bits, and in the numbers of a file."""
    folder = write_hybrid(tmp_path / "folder", "qwen35")
    file = write_gguf(folder, tmp_path / "m.gguf", matrices(Kind.Q4_0))
    for model, kind in (
        (load_model(folder, quantization="int4"), Format.INT4),
        (load_model(file, "auto", quantization="auto"), Format.Q4_0),
    ):
        assert isinstance(model, CpuDecoder) and model.mtp is not None
        found = {key: x.format for key, x in model._arena.pieces.items() if isinstance(x, PackedMatrix)}
        own = {key: format for key, format in found.items() if key.startswith(("4.", "mtp."))}
        assert len(own) >= 4 and {*own.values()} == {kind} == {found["2.qkv"], found["2.down"]}


def test_ranks_share_the_layer() -> None:
    config = ModelConfig.from_json(CONFIGS["numbered"])
    for shard in RankShard.all(config, Parallel(tp=2)):
        assert shard.local.mtp is not None and shard.local.mtp.layer == shard.local.layers[0] != config.layers[0]

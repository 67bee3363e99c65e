"""A head is made from prompts: every part by itself, all parts in one run, interrupted, and as a command."""

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import write_dense
from cli_tools import call, printed, run, write_lines
from engine_tools import Ask, Bench, answer, write_kin
from refusals import refused
from tokenizers_tiny import write_bpe

from fastslow.draft.head.config import read_ends, read_head, read_metadata
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.runner import load_head
from fastslow.engine.backends.loader import load_model
from fastslow.tools.job_options import HeadOptions, TrainConfig
from fastslow.tools.kept import KeptWork
from fastslow.tools.train_head import trainer
from fastslow.tools.train_head.answers import TrainText
from fastslow.tools.train_head.batches import Shown, batches
from fastslow.tools.train_head.features import Shards, look
from fastslow.tools.train_head.muon import Muon
from fastslow.tools.train_head.train import first_weights, head_quality, train_head
from fastslow.tools.train_head.trainer import Measured

VOCAB = 40


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kin(tmp_path_factory.mktemp("train") / "target", routed=0.3, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def bench(target: Path) -> Bench:
    return Bench(load_model(target, "float32", "cpu", progress=False), {})


def prompts(count: int) -> list[Any]:
    """Conversations whose content is taken for token ids."""
    return [[{"role": "user", "content": [3 + n % 4, 4, 5]}] for n in range(count)]


def asked(bench: Bench) -> Any:
    def ask(some: Any, params: Any) -> list[Any]:
        asks = [Ask(tuple(c[0]["content"]), p, seed=p.seed) for c, p in zip(some, params)]
        done = zip(asks, bench.run(asks))
        return [SimpleNamespace(prompt_token_ids=[*a.tokens], token_ids=answer(r)) for a, r in done]

    return ask


def plan(target: Path, folder: Path, tokens: int = 6000) -> tuple[HeadOptions, TrainConfig]:
    out, model = folder / "head.safetensors", str(target)
    (data := folder / "prompts.jsonl").touch()
    options = HeadOptions(target=model, data=data, out=out, vocabulary=VOCAB, answer=20)
    training = {"rows": 256, "steps": 3, "warm_up": 4, "products": "float32", "rate": 1e-2}
    return options, TrainConfig.model_validate(training | {"tokens": tokens})


def test_a_head_learns_and_drafts(bench: Bench, target: Path, tmp_path: Path) -> None:
    made, training = plan(target, tmp_path)
    seen: list[Measured] = []
    reported: list[tuple[float, str]] = []
    found = train_head(
        made, training, bench.model, asked(bench), prompts(40), lambda share, text: reported.append((share, text)),
        seen.append,
    )  # fmt: skip
    assert [text for _, text in reported[:2]] == ["answers", "features"]
    assert all(0 <= share <= 1 for share, _ in reported[:-1])
    assert seen[-1].loss < 0.6 * seen[0].loss and seen[-1].right[0] > seen[0].right[0] + 0.3
    assert seen[-1].tokens >= 6000 and found.tokens_per_step > 1.5
    config, weights = read_head(made.out)
    assert weights["qkv"].dtype == torch.bfloat16 and config.layers == (0, 1)
    assert (config.prompt, config.window) == (1024, 1280)
    own = Bench(bench.model, {"head": lambda kv: HeadDraft(load_head(made.out, target))})
    asks = [Ask((first, 4, 5), drafter="head", nodes=3) for first in range(3, 7)]
    requests = own.run(asks)
    assert [answer(r) for r in requests] == [answer(own.alone(ask)) for ask in asks]
    drafted = sum(r.spec_stats.drafted for r in requests)
    assert sum(r.spec_stats.accepted for r in requests) > 0.2 * drafted


def test_interrupted_it_continues(bench: Bench, target: Path, tmp_path: Path) -> None:
    made, training = plan(target, tmp_path, tokens=2000)
    counts: list[int] = []

    def stop(measured: Measured) -> None:
        counts.append(measured.tokens)
        if len(counts) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_head(made, training, bench.model, asked(bench), prompts(30), on_update=stop)
    assert not made.out.exists()

    def refuse(*_: Any) -> Any:
        raise AssertionError("every prompt is answered already")

    train_head(made, training, bench.model, refuse, prompts(30), on_update=stop)
    assert counts[3] > counts[2] and made.out.is_file()
    other = made.model_copy(update={"vocabulary": VOCAB - 1})
    refused(r"checkpoint=.* is of another head", train_head, other, training, bench.model, refuse, prompts(30))
    refused("at least 2 prompts, got 1", train_head, made, training, bench.model, refuse, prompts(1))


def test_features_are_the_targets_own(bench: Bench, target: Path, tmp_path: Path) -> None:
    texts = [TrainText([3, 4, 5, 6], 2), TrainText([7, 8, 9, 10, 11, 12], 3), TrainText([5] * 3, 1)]
    kept = KeptWork(tmp_path / "head", target, TrainConfig())
    shards = Shards(kept, "features", bench.model, texts, (1, 0))
    kept_texts = shards.make()
    assert kept_texts[0].tokens.tolist() == shards.read("features-00000")[0].tokens.tolist(), "as they are kept"
    alone = [look(bench.model, [text], (1, 0))[0] for text in texts]
    for mine, seen, text in zip(alone, kept_texts, texts, strict=True):
        assert seen.tokens.tolist() == text.tokens and seen.start == text.start
        assert torch.allclose(seen.features.float(), mine.features.float(), atol=1e-2)
        assert torch.equal(seen.best, mine.best) and torch.allclose(seen.mass, mine.mass, atol=1e-4)
    assert torch.equal(alone[0].best, torch.tensor(_best(bench, texts[0].tokens)))


def _best(bench: Bench, tokens: list[int]) -> list[int]:
    """The next token of plain decoding after each beginning."""
    runs = [answer(bench.alone(Ask(tuple(tokens[: n + 1]))))[0] for n in range(len(tokens))]
    return torch.tensor(runs, dtype=torch.int32).tolist()


def test_a_share_of_the_vocabulary_stands_for_all_of_it(bench: Bench, target: Path) -> None:
    """The loss of many draws is about that of all tokens; a text's own tokens are always there."""
    texts = [TrainText([3, 4, *[5, 6, 7] * 6], 2), TrainText([9, 3, *[8, 5] * 7], 3)]
    config, weights = first_weights(target, (0, 1), torch.arange(VOCAB, dtype=torch.int32))
    made = trainer.Trainer(config, weights, read_ends(target), TrainConfig(products="float32"))
    (batch,) = batches(look(bench.model, texts, (0, 1)), 200, Shown(1.0, 4), 32, Random(0))
    torch.manual_seed(0)
    with torch.no_grad():
        whole = float(made.measure(batch)[0])
        drawn = [float(made.measure(batch, 0.5)[0]) for _ in range(120)]
    assert min(drawn) < whole < max(drawn) and abs(sum(drawn) / 120 - whole) < 0.05 * whole


def test_a_walk_accepts_what_the_target_holds_likeliest(bench: Bench) -> None:
    """Hits that are known give the steps that can be counted by hand."""
    seen = look(bench.model, [TrainText([3, 4, *[5] * 10], 2)], (0, 1))
    hits = torch.zeros(3, 1, 11, dtype=torch.bool)
    hits[0, 0, [0, 3]] = hits[1, 0, 1] = True

    def measure(batch: Any) -> tuple[Any, list[Any]]:
        return None, list(hits[:, :, : batch.after.shape[1]])

    config = SimpleNamespace(hidden=32, prompt=4)
    knows: Any = SimpleNamespace(train_config=TrainConfig(steps=3), config=config, measure=measure)
    found = head_quality(knows, seen)
    # Row 0: two accepted, on to row 3: one accepted, on to row 5: none, row 6: none, row 7 is too late.
    assert found.steps == 4 and found.tokens_per_step == (3 + 2 + 1 + 1) / 4
    assert found.acceptance == [0.5, 0.5, 0.0]


def test_batches_hold_what_is_seen_of_prompts(bench: Bench) -> None:
    runs = (range(3, 23), 12), (range(5, 12), 1), (range(4, 14), 4)
    texts = [TrainText([*tokens], start) for tokens, start in runs]
    seen = look(bench.model, texts, (0, 1))
    for share, shown in ((1.0, {12: 6, 1: 0, 4: 3}), (0.0, {12: 0, 1: 0, 4: 0})):
        found = list(batches(seen, 200, Shown(share, 6), 32, Random(0)))
        assert sum(len(b.after) for b in found) == 3 and sum(b.tokens for b in found) == 7 + 5 + 5
        for batch in found:
            before = batch.before
            P = before.after.shape[1]
            assert P == int(before.visible.sum(-1).max())
            for row in range(len(batch.after)):
                (text,) = (t for t in seen if int(t.tokens[t.start]) == int(batch.after[row, 0]))
                count, first = shown[text.start], text.start - 1
                assert before.visible[row].tolist() == [False] * (P - count) + [True] * count
                assert before.places[row].tolist() == list(range(-P, 0))
                own = slice(first - count, first)
                assert torch.equal(before.features[row, P - count :], text.features[own])
                fresh = text.tokens[first - count + 1 : first + 1].long()
                assert torch.equal(before.after[row, P - count :], fresh)
                rows = len(text.tokens) - text.start
                assert torch.equal(batch.features[row, :rows], text.features[first:-1])
                assert torch.equal(batch.after[row, :rows], text.tokens[first + 1 :].long())
                assert int(batch.visible[row].sum()) == rows == int(batch.end[row]) + 1


def test_some_prompts_are_moved_away_but_not_too_far(bench: Bench) -> None:
    seen = look(bench.model, [TrainText([3, 4, 5, 6, 7, 8, 9], 4)] * 60, (0, 1))
    shown = Shown(1.0, 8, moved=0.5)
    firsts = [int(place) for batch in batches(seen, 64, shown, 32, Random(0)) for place in batch.before.places[:, 0]]
    assert set(firsts) == set(range(-8, -2)) and 20 < firsts.count(-3) < 50


@pytest.fixture
def command(tmp_path: Path) -> tuple[object, ...]:
    """`train-draft` of a small head for a small model."""
    folder = write_dense(tmp_path / "model", vocab=320)
    write_bpe(folder, "{% for m in messages %}{{ m['content'] }}{% endfor %}", 320)
    data = write_lines(tmp_path / "prompts.jsonl", *({"prompt": f"say {n}"} for n in range(8)))
    files = (folder, "--data", data, "-o", tmp_path / "head.safetensors", "--answer", 12)
    return ("train-draft", *files, *("--tokens", 200, "--rows", 64, "--dtype", "float32", "--vocabulary", 100))


def test_the_command(command: tuple[object, ...], tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "head.safetensors"
    assert "tokens/step in chains of 4 on held-out answers" in printed(*command)
    assert (tmp_path / "head.safetensors.work" / "checkpoint.safetensors").is_file()
    head = load_head(out, folder)
    assert head.config.layers == (0, 1) and len(head.vocab_ids(head.open(0))) == 100
    assert run("train-draft", "--target", folder, "--data", out, "-o", out) != 0


def test_a_resumed_training_keeps_its_dtype(
    bench: Bench, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dtype is timed at the start: another moment would choose another one."""
    made, training = plan(target, tmp_path, tokens=300)
    training = training.model_copy(update={"products": "auto"})
    timed = iter([torch.bfloat16])
    monkeypatch.setattr(trainer, "faster_dtype", lambda: next(timed))
    train_head(made, training, bench.model, asked(bench), prompts(20))
    train_head(made, training.model_copy(update={"tokens": 600}), bench.model, asked(bench), prompts(20))
    assert read_metadata(tmp_path / "head.safetensors.work" / "checkpoint.safetensors")["products"] == "bfloat16"


def test_interrupted_the_command_says_that_it_goes_on(
    command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **how: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "update", stop)
        done = call(*command)
    said = " ".join(done.err.split())
    assert done.code == 130 and "head.safetensors.work keeps what was done: the same command" in said
    monkeypatch.setattr("fastslow.tools.train_head.features.look", None)  # nothing is looked at again
    assert run(*command) == 0


# The optimiser


@pytest.mark.parametrize("shape", [(40, 96), (96, 40)])
def test_in_bfloat16_it_does_what_torchs_own_does(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own = Muon([ours], 1e-2, 0.03, torch.bfloat16)
    reference = torch.optim.Muon([theirs], 1e-2, 0.03, adjust_lr_fn="match_rms_adamw")
    for _ in range(6):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.allclose(ours, start, atol=1e-2)

"""openPangu Pro MoE V2 in the engine: whatever drafts, the tokens of plain decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MOGE, write, write_dense
from distributions import chi_square_fits, plain_probs, text_probs
from engine_tools import PLENTY, Ask, Bench, RandomDraft, Setting, answer, cache_for, write_kin
from pangu_v2_tools import MOE, ReferenceMoe, tensors, write_moe

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.head import load_mtp
from fastslow.draft.head.layer import HeadKV
from fastslow.draft.head.runner import TorchRunner
from fastslow.draft.head.state import RequestVocab
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.engine.backends.loader import load_model
from fastslow.engine.sampling.probs import only_best, probs_at

VOCAB = 24
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 2}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]
DRAFTERS = ("ngram", "random", "skip", "kin", "mtp", "mtp tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe(tmp_path_factory.mktemp("moe") / "target", **FIELDS)


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    config = {**MOE, **FIELDS}
    generator = torch.Generator().manual_seed(1)
    near = {
        name: t + 0.05 * t.std() * torch.randn(t.shape, generator=generator) if t.numel() > 1 else t
        for name, t in tensors(config).items()
    }
    kin = load_model(write(folder.parent / "kin", config, near), "float32")
    model = load_model(folder, "float32", "cpu", progress=False)
    head = load_mtp(folder, torch.float32)
    return Bench(
        model,
        {
            "ngram": lambda kv: NgramDraft(2, 1),
            "random": lambda kv: RandomDraft(),
            "skip": lambda kv: ModelDraft(model.layer_subset([0]), BorrowedKV(kv), probs_at),
            "kin": lambda kv: ModelDraft(kin, OwnKV(cache_for(kin)), probs_at, only_best=only_best),
            "mtp": lambda kv: HeadDraft(TorchRunner(head), probs_at),
            "mtp tree": lambda kv: HeadDraft(TorchRunner(head), probs_at, width=3, depth=3),
        },
    )


def asks(kind: str | None = None, **params: Any) -> list[Ask]:
    kinds = (*DRAFTERS, "off")[: len(PROMPTS)] if kind is None else [kind] * len(PROMPTS)
    settings = {"max_tokens": 24, "ignore_eos": True, **params}
    return [
        Ask(prompt, SamplingParams(**settings), name, seed=n)
        for n, (prompt, name) in enumerate(zip(PROMPTS, kinds))
    ]


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize(
    ("setting", "warm"),
    [(PLENTY, False), (Setting(prompt_rows=5, pages=26), True)],
    ids=["plenty", "few pages, chunks, prefix hits"],
)
def test_greedy_answers_are_those_of_plain_decoding(
    bench: Bench, kind: str, setting: Setting, warm: bool
) -> None:
    wanted = asks(kind)
    requests = bench.run(wanted, setting, [a.plain for a in wanted] if warm else ())
    assert [answer(r) for r in requests] == [answer(bench.alone(ask)) for ask in wanted]
    assert all(r.spec_stats.drafted for r in requests) or kind == "ngram"
    assert sum(r.spec_stats.accepted for r in requests) > 0
    assert sum(r.spec_stats.cached for r in requests) > 0 or not warm


@pytest.mark.parametrize("kind", ["mtp", "mtp tree"])
def test_sampled_answers_have_the_targets_probabilities(
    bench: Bench, folder: Path, kind: str
) -> None:
    params = SamplingParams(max_tokens=4, temperature=1.0, ignore_eos=True)
    prompt = PROMPTS[0]
    plain = ReferenceMoe(folder)

    def probs_after(begun: tuple[int, ...]) -> Any:
        text = [*prompt, *begun]
        return plain_probs(plain.logits(text)[-1].tolist(), text, len(prompt), params)

    runs = [Ask(prompt, params, kind, nodes=3, seed=seed) for seed in range(300)]
    texts = [tuple(answer(r)[:2]) for r in bench.run(runs, Setting(pages=4000))]
    chi_square_fits(text_probs(probs_after, VOCAB, 2), texts)


def test_the_head_is_the_predictor_of_the_reference(folder: Path) -> None:
    """Its logits equal the layer run plainly, behind the target's own hidden states."""
    plain = _PlainPredictor(folder)
    tokens = list(PROMPTS[2])
    head = load_mtp(folder, torch.float32)
    features = torch.stack(plain.last_hidden(tokens)).float()
    hidden = head.read(features[:-1], tokens[1:], [HeadKV(head.config, 0)], [len(tokens) - 1])
    got = head.logits(hidden, [RequestVocab(head.vocab)], [1])[0][0].double().log_softmax(-1)
    torch.testing.assert_close(got, plain.predicted(tokens), rtol=0, atol=1e-4)


def test_head_names_the_checkpoints_own_layer(folder: Path) -> None:
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    with LLM(folder, kv_memory="8MiB") as llm:
        assert llm.has_head
        prompts = [list(prompt) for prompt in PROMPTS]
        plain = llm.generate(prompts, params, speculation="off")
        drafted = llm.generate(prompts, params, speculation=Speculation(drafter="head", nodes=3))
        for a, b in zip(plain, drafted):
            assert a.choices[0].token_ids == b.choices[0].token_ids
        assert sum(o.choices[0].metrics.accepted for o in drafted) > 0


def test_without_the_layer_there_is_no_head(tmp_path: Path) -> None:
    config = {**MOE, **FIELDS}
    table = {n: t for n, t in tensors(config).items() if not n.startswith("model.layers.2.")}
    with LLM(write(tmp_path, config, table), kv_memory="8MiB") as llm:
        assert not llm.has_head
        with pytest.raises(ValueError, match="drafter='head' needs head=PATH"):
            llm.generate([5, 6], speculation="head")


def test_a_dense_embedded_model_drafts_for_a_grouped_one(tmp_path: Path) -> None:
    """As openPangu Embedded 1B and 7B, of the same vocabulary, would for Pro MoE 72B."""
    target = write_kin(tmp_path / "target", MOGE, routed=0.3, vocab_size=VOCAB)
    small = write_dense(
        tmp_path / "small", "PanguEmbeddedForCausalLM", vocab=VOCAB, num_hidden_layers=1
    )
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    hot = SamplingParams(max_tokens=24, ignore_eos=True, temperature=1.0, seed=5)
    prompts = [list(prompt) for prompt in PROMPTS]
    with LLM(target, kv_memory="8MiB") as llm:
        for width in (1, 3):
            draft = Speculation(drafter="model", model=str(small), nodes=4, width=width)
            for wanted in (params, hot):
                plain = llm.generate(prompts, wanted, speculation="off")
                drafted = llm.generate(prompts, wanted, speculation=draft)
                for a, b in zip(plain, drafted):
                    assert a.choices[0].token_ids == b.choices[0].token_ids
                    assert b.choices[0].metrics.drafted > 0
                assert sum(o.choices[0].metrics.accepted for o in drafted) > 0


class _PlainPredictor(ReferenceMoe):
    """The draft layer behind the plain model."""

    def last_hidden(self, tokens: list[int]) -> list[torch.Tensor]:
        """float64 [H] per token, before the last norm."""
        hidden = [self.tensors["model.embed_tokens.weight"][t] for t in tokens]
        for n in range(self.config["num_hidden_layers"]):
            hidden = self._layer(n, hidden, None, 0)
        return hidden

    def predicted(self, tokens: list[int]) -> torch.Tensor:
        """log-probabilities of the token after the last one."""
        n = self.config["num_hidden_layers"]
        layer = f"model.layers.{n}"
        rows = []
        for hidden, after in zip(self.last_hidden(tokens)[:-1], tokens[1:], strict=True):
            embedded = self.tensors["model.embed_tokens.weight"][after]
            before = self._norm(f"{layer}.hnorm", self._norm("model.norm", hidden))
            pair = torch.cat((self._norm(f"{layer}.enorm", embedded), before))
            rows.append(self._linear(f"{layer}.eh_proj", pair))
        last = self._layer(n, rows, None, 0)[-1]
        return self._linear("lm_head", self._norm(f"{layer}.shared_head.norm", last)).log_softmax(
            -1
        )

"""openPangu Pro MoE V2 in the engine: its draft layer, and a model that drafts for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MOGE, write, write_dense
from distributions import chi_square_fits, plain_probs, text_probs
from engine_tools import Ask, Bench, Setting, answer, write_kin
from pangu_v2_tools import MOE, tensors, write_moe
from reference_model import ReferenceModel

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.layer import HeadKV
from fastslow.draft.head.mtp import load_mtp
from fastslow.draft.head.runner import TorchRunner
from fastslow.draft.head.state import RequestVocab
from fastslow.engine.backends.loader import load_model
from fastslow.engine.sampling.probs import probs_at

VOCAB = 24
FIELDS: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 2}
PROMPTS = [tuple(np.random.default_rng(n).integers(3, VOCAB, n).tolist()) for n in (3, 21, 9, 14)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe(tmp_path_factory.mktemp("moe") / "target", **FIELDS)


def test_sampled_answers_have_the_targets_probabilities(folder: Path) -> None:
    """Chains and trees of the draft layer."""
    head = load_mtp(folder, torch.float32)
    bench = Bench(
        load_model(folder, "float32", "cpu", progress=False),
        {
            "mtp": lambda kv: HeadDraft(TorchRunner(head), probs_at),
            "mtp tree": lambda kv: HeadDraft(TorchRunner(head), probs_at, width=3, depth=3),
        },
    )
    params = SamplingParams(max_tokens=4, temperature=1.0, ignore_eos=True)
    prompt = PROMPTS[0]
    plain = ReferenceModel(folder)

    def probs_after(begun: tuple[int, ...]) -> Any:
        text = [*prompt, *begun]
        return plain_probs(plain.logits(text)[-1].tolist(), text, len(prompt), params)

    kinds = ("mtp", "mtp tree")
    runs = [Ask(prompt, params, kinds[seed % 2], nodes=3, seed=seed) for seed in range(400)]
    texts = [tuple(answer(r)[:2]) for r in bench.run(runs, Setting(pages=4000))]
    chi_square_fits(text_probs(probs_after, VOCAB, 2), texts[::2])
    chi_square_fits(text_probs(probs_after, VOCAB, 2), texts[1::2])


def test_the_head_is_the_predictor_of_the_reference(folder: Path) -> None:
    """Its logits equal the layer run plainly, after the target's own hidden states."""
    plain = ReferenceModel(folder)
    tokens = list(PROMPTS[2])
    head = load_mtp(folder, torch.float32)
    features = plain.hidden(tokens).float()
    hidden = head.read(features[:-1], tokens[1:], [HeadKV(head.config, 0)], [len(tokens) - 1])
    got = head.logits(hidden, [RequestVocab(head.vocab)], [1])[0][0].double().log_softmax(-1)
    torch.testing.assert_close(got, _predicted(plain, tokens), rtol=0, atol=1e-4)


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


def _predicted(plain: ReferenceModel, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after the last one, by the draft layer after the plain model."""
    n = plain.config["num_hidden_layers"]
    layer = f"model.layers.{n}"
    before = plain.norm(f"{layer}.hnorm", plain.norm("model.norm", plain.hidden(tokens)[:-1]))
    embedded = plain.tensors["model.embed_tokens.weight"][tokens[1:]]
    pairs = torch.cat((plain.norm(f"{layer}.enorm", embedded), before), -1)
    last = plain.layer(n, plain.linear(f"{layer}.eh_proj", pairs))[-1]
    logits = plain.linear("lm_head", plain.norm(f"{layer}.shared_head.norm", last))
    return logits.log_softmax(-1)

"""Against the module of the `speculators` library, which loads the very folder that we load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_tools import eagle_config, eagle_text, eagle_weights, exact_head, write_files
from engine_tools import write_kin

from fastslow.draft.head.runner import TorchRunner
from fastslow.engine.backends.cpu.draft_head import NewRows, TreeLimits

pytestmark = pytest.mark.slow
STEPS = 4


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("eagle") / "target"
    return write_kin(made, vocab_size=12, num_hidden_layers=4)


@pytest.fixture(scope="module")
def eagle3() -> Any:
    """Of the library; the torchaudio that comes with it is not needed, and may be of another torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", None)
        return pytest.importorskip("speculators.models.eagle3")


def module_of(eagle3: Any, config: dict[str, Any]) -> Any:
    made = eagle3.Eagle3SpeculatorConfig(**config)
    made.transformer_layer_config._attn_implementation = "eager"
    return eagle3.Eagle3DraftModel(made).eval()


@pytest.mark.parametrize("layout", ["original", "speculators"])
@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llama"},
        {"model_type": "qwen3"},
        {"model_type": "llama", "norm_before_residual": True, "attention_bias": True},
        {"model_type": "llama", "norm_before_fc": True, "norm_output": True},
        {"model_type": "llama", "fc_norm": True, "mlp_bias": True},
    ],
    ids=str,
)
def test_the_logits_are_those_of_its_own_module(
    tmp_path: Path, target: Path, eagle3: Any, layout: str, fields: dict[str, Any]
) -> None:
    """Every row of a text, and a chain of tokens after each."""
    fields = {**fields, "eagle_aux_hidden_state_layer_ids": [1, 2, 4]}
    config = eagle_config(target, "speculators", **fields)
    weights = eagle_weights(config, embedding=True)
    module = module_of(eagle3, config)
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("verifier_") for name in missing)
    ours = eagle_config(target, layout, **fields)
    if layout == "speculators":
        module.save_pretrained(tmp_path / "head")
        assert (tmp_path / "head" / "model.safetensors").is_file()
        folder = tmp_path / "head"
    else:
        named = {n.replace("layers.0.", "midlayer."): w for n, w in weights.items()}
        folder = write_files(tmp_path / "head", ours, named)
    head = exact_head(folder, target)
    features, after = eagle_text(head)
    seen: list[torch.Tensor] = []
    module.lm_head.register_forward_hook(lambda _, __, out: seen.append(out[0]))
    with torch.no_grad():
        module(
            features[None],
            torch.tensor([after]),
            torch.zeros(1, len(after), dtype=torch.long),
            ttt_steps=STEPS,
        )
    assert len(seen) == STEPS
    runner = TorchRunner(head)
    for row in range(len(after)):
        number = runner.open(0)
        rows = NewRows([number], [row + 1], after[: row + 1], features[: row + 1])
        runner.grow(rows, TreeLimits([0], 1, 1, [0.0]))
        for step in range(STEPS):
            found = torch.from_numpy(runner.logits(number))
            assert (found - seen[step][row]).abs().max() < 1e-4, (row, step)
            following = after[row + 1 + step] if row + 1 + step < len(after) else 0
            runner.advance([number], [following])

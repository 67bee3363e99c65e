"""Tiny Gemma 4 models and their assistants, made and run by transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from engine_tools import Bench, Make, RandomDraft
from family_tools import load

from fastslow.draft.head.growing import Growth
from fastslow.draft.mtp.assistant import AssistantDraft
from fastslow.engine.backends.assistant import load_assistant
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.types import RequestView, Tree

VOCAB, WINDOW, TYPES = 64, 16, ["sliding_attention", "sliding_attention", "full_attention"]
BOTH: dict[str, Any] = {
    "vocab_size": VOCAB, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "global_head_dim": 32, "sliding_window": WINDOW, "layer_types": TYPES, "num_hidden_layers": 3,
    "max_position_embeddings": 512, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 64,
}  # fmt: skip


class ReferencePair:
    """A target with layers that share keys, and an assistant, written to two folders.

    clustered: the assistant's head is. fields: of the assistant's text part that are others."""

    def __init__(self, folder: Path, clustered: bool = False, vocab: int = VOCAB, **fields: Any) -> None:
        import transformers as tf

        both = BOTH | {"vocab_size": vocab, "vocab_size_per_layer_input": vocab}
        self.target, self.assistant = folder / "target", folder / "assistant"
        large = tf.Gemma4TextConfig(**both | {
            "hidden_size": 48, "layer_types": TYPES + TYPES[1:], "num_hidden_layers": 5, "num_kv_shared_layers": 2,
        })  # fmt: skip
        small = {**both, "hidden_size": 32, "num_kv_shared_layers": 3, "vocab_size_per_layer_input": 0, **fields}
        sizes = {"num_centroids": 8, "centroid_intermediate_top_k": 3, "use_ordered_embeddings": clustered}
        config = tf.Gemma4AssistantConfig(text_config=tf.Gemma4TextConfig(**small), backbone_hidden_size=48, **sizes)
        self._large = self._made(tf.Gemma4ForCausalLM(large), self.target, 0)
        self._small = self._made(tf.Gemma4AssistantForCausalLM(config), self.assistant, 1)

    def _made(self, model: Any, folder: Path, seed: int) -> Any:
        random = torch.Generator().manual_seed(seed)
        for name, x in model.state_dict().items():
            if name.endswith("token_ordering"):
                x.copy_(torch.randperm(len(x), generator=random))
            elif name.endswith(("norm.weight", "scalar")):
                x.copy_(1 + 0.2 * torch.randn(x.shape, generator=random))
            else:  # heads are sure of what they say
                size = 5.0 if name.startswith(("lm_head", "model.embed_tokens")) else 1.0
                x.copy_(size * torch.randn(x.shape, generator=random) * x.shape[-1] ** -0.5)
        model.eval().save_pretrained(folder)
        return model

    @torch.inference_mode()
    def chain(self, tokens: list[int], count: int) -> list[int]:
        """The likeliest tokens after a text whose last token the target has not read."""
        out = self._large(torch.tensor([tokens[:-1]]), output_hidden_states=True, return_shared_kv_states=True)
        seen = {  # the window of the last token, which is not among them
            kind: tuple(side[:, :, 1 - WINDOW :] if kind == TYPES[0] else side for side in both)
            for kind, both in out.shared_kv_states.items()
        }
        state, place, found = out.hidden_states[-1][:, -1:], torch.tensor([[len(tokens) - 1]]), tokens[-1:]
        for _ in range(count):
            pair = torch.cat((self._large.model.embed_tokens(torch.tensor([found[-1:]])), state), -1)
            out = self._small(inputs_embeds=pair, position_ids=place, shared_kv_states=seen)
            state = out.last_hidden_state
            found.append(int(out.logits.argmax()))
        return found[1:]


class SpiedAssistant(AssistantDraft):
    """Notes each text that it drafts for, and the draft."""

    made: list[tuple[list[int], Tree]]

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = super().propose(batch, nodes)
        self.made += [(list(r.tokens), tree) for r, tree in zip(batch, trees) if tree.tokens]
        return trees


def bench_of(target: Path, assistant: Path, kernels: bool) -> tuple[Bench, list[tuple[list[int], Tree]]]:
    """With chains, trees, and drafts of random tokens; and what chains were drafted."""
    model, made = load(target, kernels), list[tuple[list[int], Tree]]()
    own = load_assistant(assistant, model)

    def make(kv: KVCache, width: int) -> AssistantDraft:
        found = SpiedAssistant(own, model, kv, Growth(width))
        found.made = made if width == 1 else []
        return found

    drafters: dict[str, Make] = {
        "chain": lambda kv: make(kv, 1),
        "tree": lambda kv: make(kv, 3),
        "random": lambda kv: RandomDraft(),
    }
    return Bench(model, drafters), made

"""What a forward of a model reads and computes, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.names import tensor_shapes

EXPERT = ".mlp.experts."


@dataclass(frozen=True, slots=True)
class Work:
    """Sizes of a model, in numbers, not bytes.

    Attributes:
        layers, hidden: of the model.
        always: weights of the layers that every row passes: attention, shared experts, dense MLPs,
            routers, norms.
        head: weights of the head over the vocabulary. The embedding is not read, only rows of it.
        expert: weights of one routed expert, over all layers.
        experts, chosen: routed experts of a layer, and how many a row runs; 0 for a dense model.
        kv: keys and values of a token, over all layers.
        attention: operations of a row for each token it sees, over all layers.
        stored: weights that lie in memory.
    """

    layers: int
    hidden: int
    always: float
    head: float
    expert: float
    experts: int
    chosen: int
    kv: float
    attention: float
    stored: float

    @classmethod
    def of(cls, config: ModelConfig) -> Work:
        """Counted from the tensors that a checkpoint of the config holds."""
        shapes = tensor_shapes(config)
        every = {name: prod(shape) for name, shape in shapes.items()}
        embedding = every["model.embed_tokens.weight"]
        routed = sum(count for name, count in every.items() if EXPERT in name)
        head = every.get("lm_head.weight", embedding)
        total = sum(every.values())
        ends = embedding + (0 if config.tie_word_embeddings else head)
        return cls(
            layers=config.layers,
            hidden=config.hidden_size,
            always=total - ends - routed,
            head=head,
            expert=routed / config.experts if config.experts else 0,
            experts=config.experts,
            chosen=config.chosen,
            kv=2 * config.layers * config.kv_heads * config.head_dim,
            attention=4 * config.layers * config.heads * config.head_dim,
            stored=total,
        )

    def distinct(self, rows: float) -> float:
        """Routed experts of a layer that so many rows meet, if each chooses on its own:
        E (1 - (1 - k/E)^rows), which holds for one of each group and for the best k alike."""
        if not self.experts:
            return 0.0
        return self.experts * (1 - float((1 - self.chosen / self.experts) ** rows))

    def only(self, layers: int) -> Work:
        """As many layers of the average kind, with the same head: a draft layer is one."""
        share = layers / self.layers
        return Work(
            layers=layers,
            hidden=self.hidden,
            always=self.always * share,
            head=self.head,
            expert=self.expert * share,
            experts=self.experts,
            chosen=self.chosen,
            kv=self.kv * share,
            attention=self.attention * share,
            stored=(self.always + self.expert * self.experts) * share,
        )

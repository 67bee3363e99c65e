from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastslow.engine.convert.dense import LINEARS, Dense, DenseConfig
from fastslow.engine.convert.layout import Layout
from fastslow.engine.convert.student import Student

NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Recipe:
    """All that turns one dense checkpoint into its MoGE checkpoint.

    layout: neurons of every expert, router and router scales.
    deltas: low-rank pairs by "<layer>_<linear>": a [rank, columns], b [rows, rank]; the rows of
        gate and up and the columns of down are in the layout's order. Empty: weights stay.
    norms: replaced norm weights by "<layer>_<norm>" and "norm". Empty: norms stay.
    """

    layout: Layout
    deltas: dict[str, tuple[Tensor, Tensor]]
    norms: dict[str, Tensor]

    @classmethod
    def untrained(cls, layout: Layout) -> Recipe:
        return cls(layout, {}, {})

    @classmethod
    def of(cls, student: Student) -> Recipe:
        """The recipe of a student as trained so far."""
        return cls.of_state(
            {name: tensor.detach() for name, tensor in student.named_parameters()}, student.layout
        )

    @classmethod
    def of_state(cls, state: dict[str, Tensor], layout: Layout) -> Recipe:
        """The recipe of a student's named parameters."""
        layers = layout.shared.shape[0]
        trained = Layout(
            shared=layout.shared,
            pools=layout.pools,
            experts=layout.experts,
            router=torch.stack([state[f"gates.{i}.router"] for i in range(layers)]),
            scale=torch.stack([state[f"gates.{i}.log_scale"].exp() for i in range(layers)]),
        )
        names = [f"{i}_{name}" for i in range(layers) for name in LINEARS]
        deltas = {n: (state[f"params.{n}_a"], state[f"params.{n}_b"]) for n in names}
        norms = {
            f"{i}_{name}": state[f"params.{i}_{name}"] for i in range(layers) for name in NORMS
        }
        return cls(trained, deltas, norms | {"norm": state["params.norm"]})

    def save(self, path: Path) -> None:
        """Writes one safetensors file: bfloat16 values and uint16 neuron numbers."""
        tensors = {
            "shared": self.layout.shared.to(torch.uint16),
            "pools": self.layout.pools.to(torch.uint16),
            "experts": self.layout.experts.to(torch.uint16),
            "router": self.layout.router.bfloat16(),
            "scale": self.layout.scale.bfloat16(),
        }
        for name, (a, b) in self.deltas.items():
            tensors[f"delta.{name}.a"], tensors[f"delta.{name}.b"] = a.bfloat16(), b.bfloat16()
        for name, weight in self.norms.items():
            tensors[f"norm.{name}"] = weight.bfloat16()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        save_file({name: t.contiguous() for name, t in tensors.items()}, part)
        part.chmod(0o644)
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a recipe.

        Raises:
            ValueError: the file is missing, truncated, or lacks a tensor.
        """
        if not path.is_file():
            raise ValueError(f"recipe file {path} must exist, and does not")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"recipe file {path} must be complete safetensors: {error}") from error
        try:
            shared, pools, experts = (tensors[n].long() for n in ("shared", "pools", "experts"))
            router, scale = tensors["router"].float(), tensors["scale"].float()
            deltas = {
                name.removeprefix("delta.").removesuffix(".a"): (
                    tensor.float(),
                    tensors[f"{name.removesuffix('.a')}.b"].float(),
                )
                for name, tensor in tensors.items()
                if name.startswith("delta.") and name.endswith(".a")
            }
        except KeyError as error:
            raise ValueError(
                f"recipe file {path} must hold tensor {error}, and does not"
            ) from error
        norms = {
            name.removeprefix("norm."): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith("norm.")
        }
        return cls(Layout(shared, pools, experts, router, scale), deltas, norms)

    def check(self, config: DenseConfig) -> None:
        """ValueError unless the recipe is complete and fits a dense model of this shape."""
        layers, hidden = config.layers, config.hidden
        shape = (self.layout.shared.shape[0], self.layout.router.shape[2])
        if shape != (layers, hidden):
            raise ValueError(
                f"recipe must be for {layers} layers of {hidden}, got {shape[0]} of {shape[1]}"
            )
        self.layout.check(config.inner)
        if self.deltas:
            wanted = {f"{i}_{name}" for i in range(layers) for name in LINEARS}
            if missing := wanted - self.deltas.keys():
                raise ValueError(f"recipe lacks {len(missing)} deltas, such as {min(missing)}")
        if self.norms:
            wanted = {f"{i}_{name}" for i in range(layers) for name in NORMS} | {"norm"}
            if missing := wanted - self.norms.keys():
                raise ValueError(f"recipe lacks {len(missing)} norms, such as {min(missing)}")

    def student(self, dense: Dense) -> Student:
        """A student of `dense` with this recipe's parameters, to train on or to measure."""
        self.check(dense.config)
        rank = next(iter(self.deltas.values()))[0].shape[0] if self.deltas else 16
        student = Student(dense, self.layout, rank)
        with torch.no_grad():
            for name, (a, b) in self.deltas.items():
                student.params[f"{name}_a"].copy_(a)
                student.params[f"{name}_b"].copy_(b)
            for name, weight in self.norms.items():
                student.params[name].copy_(weight)
        return student

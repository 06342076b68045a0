"""Weights by their names in Hugging Face files and in our decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebus.models.hf.family import ExpertRule, Family, Rule

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """One tensor of theirs and those of ours that it holds, along its first axis or, ``transposed``, along its last."""

    theirs: str
    ours: tuple[str, ...]
    # Of ours, in their order.
    shapes: tuple[Shape, ...]
    transposed: bool
    # Where in ours it lies, if that is more than theirs: the expert and its rows.
    at: tuple[int | slice, ...] = ()

    @property
    def shape(self) -> Shape:
        """The shape of their tensor."""
        stacked = (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])
        return stacked[::-1] if self.transposed else stacked

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Our tensors of theirs, or what of them it holds."""
        stacked = tensor.T if self.transposed else tensor
        parts = stacked.split([shape[0] for shape in self.shapes])
        return dict(zip(self.ours, parts, strict=True))

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Their tensor of ours."""
        stacked = torch.cat([tensors[name][self.at] for name in self.ours])
        return stacked.T if self.transposed else stacked


def slots(family: Family, shapes: Mapping[str, Shape], num_layers: int) -> list[Slot]:
    """Where each of our tensors, named with their shapes, stands in a file of the family; a rule for each is needed."""

    def named(rule: Rule, theirs: str, ours: str) -> list[Slot]:
        return [
            _slot(rule, theirs, ours, kind, shapes)
            for kind in ("weight", "bias")
            if f"{ours}{rule.ours[0]}.{kind}" in shapes
        ]

    found = [slot for rule in family.rules for slot in named(rule, family.prefix, "")]
    for layer in range(num_layers):
        theirs, ours = f"{family.prefix}{family.layers}.{layer}.", f"layers.{layer}."
        found += [slot for rule in family.layer_rules for slot in named(rule, theirs, ours)]
        stacked = [rule for rule in family.expert_rules if f"{ours}{rule.ours}" in shapes]
        found += [slot for rule in stacked for slot in _expert_slots(rule, theirs, ours, shapes)]
    found += named(Rule("lm_head", ("lm_head",)), "", "")
    return found


def _slot(rule: Rule, theirs: str, ours: str, kind: str, shapes: Mapping[str, Shape]) -> Slot:
    names = tuple(f"{ours}{stem}.{kind}" for stem in rule.ours)
    return Slot(
        theirs=f"{theirs}{rule.theirs}.{kind}",
        ours=names,
        shapes=tuple(shapes[name] for name in names),
        transposed=rule.transposed and kind == "weight",
    )


def _expert_slots(rule: ExpertRule, theirs: str, ours: str, shapes: Mapping[str, Shape]) -> list[Slot]:
    name = f"{ours}{rule.ours}"
    num_experts, height, width = shapes[name]
    rows = height // rule.parts
    return [
        Slot(
            theirs=f"{theirs}{rule.theirs.format(expert=expert)}",
            ours=(name,),
            shapes=((rows, width),),
            transposed=False,
            at=(expert, slice(rule.part * rows, (rule.part + 1) * rows)),
        )
        for expert in range(num_experts)
    ]


def whole_names(family: Family, names: list[str]) -> dict[str, str]:
    """Names in a file -> names of a whole model: published files of the bare model lack the prefix."""
    kept = [name for name in names if not name.endswith(family.ignored)] if family.ignored else names
    if any(name.startswith(family.prefix) for name in kept):
        return {name: name for name in kept}
    return {name: name if name.startswith("lm_head.") else family.prefix + name for name in kept}


def fill(found: list[Slot], shapes: Mapping[str, Shape], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Our tensors, float32 and each with memory of its own, from theirs as ``read`` gives them by name."""
    tensors: dict[str, Tensor] = {}
    for slot in found:
        for name, part in slot.split(read(slot.theirs)).items():
            if name not in tensors:
                tensors[name] = torch.empty(shapes[name], dtype=torch.float32)
            # A copy, since a tensor of a file may be a view of the file itself, which can change or go.
            tensors[name][slot.at].copy_(part)
    return tensors

"""Tables of names, ours beside transformers', and the conversion of state dicts by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rebus.errors import invalid
from rebus.models.encoders.transformer import Activation

# transformers' names of activations.
_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Entry:
    """One tensor of ours and how transformers keeps it."""

    ours: str
    # The layouts in use, the published one first: names whose tensors, one below the other, make up ours.
    theirs: tuple[tuple[str, ...], ...]
    # Leading dimensions of size 1 that theirs have and ours does not.
    lead: int = 0


def entry(ours: str, *theirs: str, lead: int = 0) -> Entry:
    """An entry for one tensor that stands under one of the names ``theirs``."""
    return Entry(ours, tuple((name,) for name in theirs), lead)


def linear(ours: str, *theirs: Sequence[str]) -> list[Entry]:
    """Entries for weight and bias of a layer; each of ``theirs`` is a layout, a list of layers one below the other."""
    return [
        Entry(f"{ours}.{kind}", tuple(tuple(f"{name}.{kind}" for name in names) for names in theirs)) for kind in _KINDS
    ]


def per_layer(entries: Iterable[Entry], num_layers: int, *, ours: str, theirs: Sequence[str]) -> list[Entry]:
    """The entries of one layer repeated, behind prefixes that hold ``{}`` for the number, theirs published first."""
    return [
        replace(
            item,
            ours=ours.format(number) + item.ours,
            theirs=tuple(
                tuple(prefix.format(number) + name for name in names) for prefix in theirs for names in item.theirs
            ),
        )
        for number in range(num_layers)
        for item in entries
    ]


def import_state(
    build: Callable[[], nn.Module],
    entries: Iterable[Entry],
    state: Mapping[str, Tensor],
    *,
    anchor: str,
    ignored: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Our state dict, for the module that ``build`` makes, from theirs.

    ``anchor`` is a name that the encoder surely has: what stands before it there is the encoder's prefix in a larger
    model, whose other tensors are left alone. Of the encoder's own every tensor but the ``ignored`` must be known.
    Raises ``InvalidArgumentError`` naming what is missing, unknown, or of another shape.
    """
    theirs = _below_anchor(state, anchor)
    with torch.device("meta"):
        expected = build().state_dict()
    by_name = {item.ours: item for item in entries}
    used, found = set(ignored), dict[str, Tensor]()
    for name, want in expected.items():
        names = _layout(by_name[name], theirs)
        found[name] = _ours(by_name[name], [theirs[part] for part in names])
        if found[name].shape != want.shape:
            raise invalid(f"state.{names[0]}", f"makes {list(found[name].shape)}, expected {list(want.shape)}")
        used.update(names)
    if unknown := sorted(theirs.keys() - used):
        raise invalid("state", f"has {len(unknown)} unknown tensors, such as {', '.join(unknown[:3])}")
    return found


def export_state(entries: Iterable[Entry], state: Mapping[str, Tensor], *, prefix: str = "") -> dict[str, Tensor]:
    """Their state dict, as published and behind ``prefix``, from ours; each tensor with memory of its own."""
    by_name = {item.ours: item for item in entries}
    exported: dict[str, Tensor] = {}
    for name, tensor in state.items():
        item = by_name[name]
        for part, value in zip(item.theirs[0], tensor.chunk(len(item.theirs[0])), strict=True):
            exported[prefix + part] = value[(None,) * item.lead].clone()
    return exported


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a model's config that is the image encoder's: itself, or what stands under ``vision_config``."""
    return config.get("vision_config", config)


def square(config: Mapping[str, Any], name: str, default: int) -> int:
    """A side in pixels that may be written as height and width; ``InvalidArgumentError`` where they differ."""
    value = config.get(name, default)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise invalid(f"config.{name}", f"expected a square, found {value}")
    return sides.pop()


def activation_from_hf(config: Mapping[str, Any], default: str, *, field: str = "hidden_act") -> Activation:
    """Our name of the config's activation; ``InvalidArgumentError`` for one that no encoder here has."""
    name = config.get(field, default)
    if name not in _ACTIVATIONS:
        raise invalid(f"config.{field}", f"expected one of {', '.join(_ACTIVATIONS)}, found {name!r}")
    return _ACTIVATIONS[name]


def activation_to_hf(activation: Activation) -> str:
    """transformers' name of an activation; ``InvalidArgumentError`` for one that is no plain function there."""
    for theirs, ours in _ACTIVATIONS.items():
        if ours == activation:
            return theirs
    raise invalid("config.activation", f"this family has none such as {activation!r} in transformers")


def _below_anchor(state: Mapping[str, Tensor], anchor: str) -> dict[str, Tensor]:
    prefixes = [name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")]
    if len(prefixes) != 1:
        raise invalid("state", f"expected one tensor {anchor}, found {len(prefixes)}")
    return {name.removeprefix(prefixes[0]): value for name, value in state.items() if name.startswith(prefixes[0])}


def _layout(item: Entry, theirs: Mapping[str, Tensor]) -> tuple[str, ...]:
    for names in item.theirs:
        if all(name in theirs for name in names):
            return names
    raise invalid("state", f"lacks {' or '.join(' and '.join(names) for names in item.theirs)}")


def _ours(item: Entry, parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(part.shape[item.lead :]) for part in parts])

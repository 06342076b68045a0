"""A model's card, ``model.md``: what it is made of, how large that is and what a forward pass costs.

All of it is derived from the model, so that equal models have equal cards. What a model was trained on is not in it:
that is the version's document in the registry. The front matter is that of Hugging Face model cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import nn

from rebus import registry
from rebus.models.causal_lm import CausalLm
from rebus.models.dual_encoder import DualEncoder
from rebus.models.feature_cache import pooled
from rebus.models.flops import TRAINING_FACTOR, counted, decoder_token_flops, weightless
from rebus.models.mllm import Mllm
from rebus.models.mllm_embedder import MllmEmbedder
from rebus.models.moe.layer import MoeLayer
from rebus.papers import papers
from rebus.registry import Component

# Hugging Face's tasks, by architecture.
_PIPELINE_TAGS = {
    "mllm": "image-text-to-text",
    "mllm-embedder": "feature-extraction",
    "causal-lm": "text-generation",
    "dual-encoder": "zero-shot-image-classification",
}
_NOTES = f"""\
FLOPs are additions and multiplications of matrix products and convolutions in a forward pass; a training step takes
{TRAINING_FACTOR} times as many. Those of a token include its logits and its attention to the whole context. Active are
the parameters that one token passes: of experts, those that it chooses.
"""
_LINEAGE = """
What the model was trained on, and by which run, its version in the registry says: `rebus models show`.
"""


@dataclass(frozen=True)
class Part:
    """One part of a model; weights that parts share are counted in the first."""

    name: str
    component: Component | None
    parameters: int
    # Of ``parameters`` those that one token passes.
    active: int
    # Of parameters and buffers.
    num_bytes: int


@dataclass(frozen=True)
class Cost:
    """FLOPs of one input: ``what`` it is, in which part."""

    what: str
    # None where the part decides by values what it computes, so that it cannot be counted from shapes.
    flops: int | None


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything that a card says."""

    architecture: str
    parts: tuple[Part, ...]
    costs: tuple[Cost, ...]
    # Sizes of inputs and outputs, and the digest of the preprocessing, each by what it is called.
    facts: tuple[tuple[str, int | str], ...]
    # What opens the folder.
    library: str = "rebus"

    @property
    def title(self) -> str:
        """The architecture and the components it is made of."""
        return f"{self.architecture}: {', '.join(component.name for _, component in self._components())}"

    @property
    def parameters(self) -> int:
        """Number of weights, shared ones once."""
        return sum(part.parameters for part in self.parts)

    @property
    def active(self) -> int:
        """Of ``parameters`` those that one token passes."""
        return sum(part.active for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and buffers."""
        return sum(part.num_bytes for part in self.parts)

    def markdown(self) -> str:
        """The whole card."""
        sections = (
            f"---\n{yaml.safe_dump(self._front_matter(), sort_keys=False)}---",
            f"# {self.title}",
            _table(("part", "component", "parameters", "active", "bytes"), self._part_rows()),
            _table(("a forward pass of", "FLOPs"), self._cost_rows()),
            _table(("input", "value"), ((name, _shown(value)) for name, value in self.facts)),
            *self._sources(),
            _NOTES,
        )
        # An exported folder has left the registry.
        return "\n\n".join(sections) + (_LINEAGE if self.library == "rebus" else "")

    def _front_matter(self) -> dict[str, Any]:
        """Without a license: nobody here knows it."""
        names = (component.name for _, component in self._components())
        return {
            "library_name": self.library,
            "pipeline_tag": _PIPELINE_TAGS[self.architecture],
            "tags": list(dict.fromkeys(("rebus", self.architecture, *names))),
        }

    def _components(self) -> Iterator[tuple[str, Component]]:
        return ((part.name, part.component) for part in self.parts if part.component is not None)

    def _part_rows(self) -> Iterator[tuple[str, ...]]:
        for part in self.parts:
            component = "" if part.component is None else f"`{part.component.name}`"
            yield (part.name, component, _count(part.parameters), _count(part.active), _bytes(part.num_bytes))
        yield ("**all**", "", _count(self.parameters), _count(self.active), _bytes(self.num_bytes))

    def _cost_rows(self) -> Iterator[tuple[str, str]]:
        return ((cost.what, "not counted" if cost.flops is None else _count(cost.flops)) for cost in self.costs)

    def _sources(self) -> Iterator[str]:
        """The papers that the components name, one section if there are any."""
        catalogue = {paper.id: paper for paper in papers()}
        lines = [
            f"- {name} `{component.name}`: {paper.title}" + (f", <{paper.url}>" if paper.url else "")
            for name, component in self._components()
            for paper in (catalogue[id] for id in component.papers if id in catalogue)
        ]
        if lines:
            yield "Papers:\n\n" + "\n".join(lines)


def describe(model: nn.Module) -> Card:
    """The card of an ``Mllm``, alone or as an embedder, a ``CausalLm`` or a ``DualEncoder``."""
    if isinstance(model, Mllm):
        return _of_mllm(model)
    if isinstance(model, MllmEmbedder):
        return _of_mllm_embedder(model)
    if isinstance(model, CausalLm):
        return of_decoder(model.decoder, str(model.config.decoder["name"]))
    if isinstance(model, DualEncoder):
        return _of_dual_encoder(model)
    raise TypeError(f"no card for a {type(model).__name__}")


def of_decoder(decoder: Any, name: str) -> Card:
    """The card of the registered decoder ``name`` by itself, a language model."""
    context = decoder.config.max_positions
    return Card(
        architecture="causal-lm",
        parts=_parts(decoder, _decoder_parts(decoder, name)),
        costs=(_text_cost(decoder, context),),
        facts=(("context, tokens", context), ("vocabulary, tokens", decoder.embed_tokens.num_embeddings)),
    )


def _of_mllm(model: Mllm) -> Card:
    parts = _parts(model, _mllm_parts(model))
    return Card(architecture="mllm", parts=parts, costs=_mllm_costs(model), facts=_mllm_facts(model))


def _of_mllm_embedder(model: MllmEmbedder) -> Card:
    config = model.config
    head = registry.get("embedding-head", config.head["name"])
    own: list[_Named] = [("embedding head", head, [model.head]), ("calibration", None, [model.calibration])]
    cut = ", ".join(str(width) for width in config.matryoshka_widths)
    facts = (("width of an embedding", model.width), *((("beginnings that embed too", cut),) if cut else ()))
    return Card(
        architecture="mllm-embedder",
        parts=_parts(model, [*_mllm_parts(model.mllm), *own]),
        costs=_mllm_costs(model.mllm),
        facts=(*facts, *_mllm_facts(model.mllm)),
    )


def _mllm_parts(model: Mllm) -> list[_Named]:
    config = model.config
    return [
        ("encoder", registry.get("encoder", config.encoder["name"]), [model.vision_encoder]),
        ("connector", registry.get("connector", config.connector["name"]), [model.connector]),
        *_decoder_parts(model.decoder, config.decoder["name"]),
        *_other_parts(model),
    ]


def _other_parts(model: Mllm) -> list[_Named]:
    parts: list[_Named] = []
    if model.frame_positions is not None:
        parts.append(("frame positions", None, [model.frame_positions]))
    if model.audio is not None and model.config.audio is not None:
        names = model.config.audio
        parts.append(("audio encoder", registry.get("encoder", names.encoder["name"]), [model.audio.encoder]))
        parts.append(("audio connector", registry.get("connector", names.connector["name"]), [model.audio.connector]))
    return parts


def _mllm_costs(model: Mllm) -> tuple[Cost, ...]:
    text = _text_cost(model.decoder, model.config.encoding.max_length_tokens)
    sound = () if model.audio is None else (_sound_cost(model),)
    return (text, *_image_costs(model, names=("encoder", "connector")), *sound)


def _mllm_facts(model: Mllm) -> tuple[tuple[str, int | str], ...]:
    config = model.config
    sound = () if model.audio is None else (("tokens a piece of sound", model.audio.num_tokens),)
    return (
        ("context, tokens", config.encoding.max_length_tokens),
        ("positions of the decoder", model.decoder.config.max_positions),
        ("images in a context", config.encoding.max_images),
        ("tokens an image", model.image_tokens),
        *sound,
        ("side of an image, pixels", model.vision_encoder.image_size),
        ("vocabulary, tokens", config.vocab_size),
        ("digest of the preprocessing", config.preprocess_digest),
    )


def _of_dual_encoder(model: DualEncoder) -> Card:
    config = model.config
    encoder = registry.get("encoder", config.vision_encoder["name"])
    text_encoder = registry.get("text-encoder", config.text_encoder["name"])
    parts: list[_Named] = [
        ("image encoder", encoder, [model.vision_encoder]),
        ("image head", None, [model.image_head]),
        ("text encoder", text_encoder, [model.get_submodule("text_encoder")]),
        ("text head", None, [model.text_head]),
        ("calibration", None, [model.calibration]),
    ]
    return Card(
        architecture="dual-encoder",
        parts=_parts(model, parts),
        costs=_image_costs(model, names=("image encoder", "image head")),
        facts=(
            ("width of an embedding", config.width),
            ("side of an image, pixels", model.processor.config.image_size),
            ("digest of the preprocessing", config.preprocess_digest),
        ),
    )


# A part before it is counted: its name, what is registered, its modules.
_Named = tuple[str, Component | None, Sequence[nn.Module]]


def _decoder_parts(decoder: Any, name: str) -> list[_Named]:
    """Tables of embeddings, the output layer among them, and the rest: the embeddings' weights are counted first."""
    tables = [getattr(decoder, table, None) for table in ("embed_tokens", "embed_positions", "lm_head")]
    return [
        ("embeddings", None, [table for table in tables if table is not None]),
        ("decoder", registry.get("decoder", name), [decoder]),
    ]


def _parts(model: nn.Module, named: Iterable[_Named]) -> tuple[Part, ...]:
    seen: set[int] = set()
    parts = [_part(*part, seen) for part in named]
    if (rest := _part("other", None, [model], seen)).num_bytes:
        parts.append(rest)
    return tuple(parts)


def _part(name: str, component: Component | None, modules: Sequence[nn.Module], seen: set[int]) -> Part:
    """What of ``modules`` was not ``seen``, which now it is."""
    tensors = {id(t): t for module in modules for t in module.state_dict(keep_vars=True).values() if id(t) not in seen}
    idle = sum(_idle(layer, seen) for module in modules for layer in module.modules() if isinstance(layer, MoeLayer))
    seen.update(tensors)
    parameters = sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, nn.Parameter))
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return Part(name, component, parameters, parameters - round(idle), num_bytes)


def _idle(layer: MoeLayer, seen: set[int]) -> float:
    """Parameters of the experts that a token does not choose."""
    chosen = layer.gate.choices_per_token / layer.config.num_experts
    return (1 - chosen) * sum(weight.numel() for weight in layer.experts.parameters() if id(weight) not in seen)


def _text_cost(decoder: Any, context: int) -> Cost:
    return Cost(f"a text token, the last of {context:,}", round(decoder_token_flops(decoder, context)))


def _image_costs(model: Mllm | DualEncoder, *, names: tuple[str, str]) -> tuple[Cost, ...]:
    try:
        first, second = _image_flops(weightless(model))
    except (RuntimeError, TypeError, ValueError):  # a part that reads values may still be saved
        return (Cost("an image", None),)
    parts = (Cost(f"an image in the {name}", flops) for name, flops in zip(names, (first, second), strict=True))
    return (*parts, Cost("an image", first + second))


def _sound_cost(model: Mllm) -> Cost:
    """Of a piece of sound in the audio part."""
    assert model.audio is not None
    dtype = next(model.audio.parameters()).dtype
    pieces = torch.empty(1, *model.audio.input_shape, dtype=dtype, device="meta")
    try:
        audio = weightless(model.audio)
        return Cost("a piece of sound", counted(lambda: audio(pieces))[1])
    except (RuntimeError, TypeError, ValueError):  # a part that reads values may still be saved
        return Cost("a piece of sound", None)


def _image_flops(model: Mllm | DualEncoder) -> tuple[int, int]:
    """FLOPs of an image in the encoder, and in what makes embeddings of its features."""
    encoder: Any = model.vision_encoder
    dtype = next((weight.dtype for weight in encoder.parameters()), torch.float32)
    pixels = torch.empty(1, 3, encoder.image_size, encoder.image_size, dtype=dtype, device="meta")
    if isinstance(model, Mllm):
        features, first = counted(lambda: model.image_features(pixels))
        return first, counted(lambda: model.connector(features))[1]
    features, first = counted(lambda: pooled(encoder, pixels))
    return first, counted(lambda: model.image_head(features))[1]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"


def _count(number: int) -> str:
    """``1,234,567 (1.23 M)``."""
    return f"{number:,}{_rounded(number, 1000, ('k', 'M', 'G', 'T', 'P'))}"


def _bytes(number: int) -> str:
    """``1,234,567 (1.18 MiB)``."""
    return f"{number:,}{_rounded(number, 1024, ('KiB', 'MiB', 'GiB', 'TiB'))}"


def _rounded(number: float, base: int, units: Sequence[str]) -> str:
    """The number in the largest unit that leaves at least 1 of it, to three digits; nothing below the first unit."""
    unit = ""
    for larger in units:
        if number < base:
            break
        number, unit = number / base, larger
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f" ({number:.{digits}f} {unit})" if unit else ""

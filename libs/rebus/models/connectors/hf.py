"""Weights of connectors as transformers names them, and back.

| connector | transformers' module |
|---|---|
| ``mlp`` | ``LlavaMultiModalProjector`` |
| ``tiled-mlp`` | ``LlavaNextMultiModalProjector`` and ``image_newline`` |
| ``perceiver-resampler`` | ``Idefics2Connector`` |
| ``pixel-shuffle`` with ``mlp`` | ``InternVLMultiModalProjector`` |
| ``pixel-shuffle`` with ``linear`` | ``Idefics3Connector`` |
| ``q-former`` | ``query_tokens``, ``qformer`` and ``language_projection`` of ``Blip2Model`` |
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rebus.errors import DataLossError
from rebus.models.connectors.mlp import MlpConnector
from rebus.models.connectors.perceiver_resampler import PerceiverResampler
from rebus.models.connectors.pixel_shuffle import PixelShuffleConnector
from rebus.models.connectors.q_former import QFormer

# Module of ours -> of transformers'; what follows such a beginning keeps its name.
_LLAVA = {"fc1": "linear_1", "fc2": "linear_2", "newline": "image_newline"}
_INTERNVL = {"proj.0": "layer_norm", "proj.1": "linear_1", "proj.3": "linear_2"}
_IDEFICS3 = {"proj": "modality_projection.proj"}
_IDEFICS2 = {
    "modality_projection": "modality_projection",
    "latents": "perceiver_resampler.latents",
    "layers": "perceiver_resampler.layers",
    "norm": "perceiver_resampler.norm",
}
_BLIP2_ATTENTION = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
_BLIP2_BLOCK = {
    **{f"self_attn.{ours}": f"attention.{theirs}" for ours, theirs in _BLIP2_ATTENTION.items()},
    "self_attn.o_proj": "attention.output.dense",
    "self_attn_norm": "attention.output.LayerNorm",
    **{f"cross_attn.{ours}": f"crossattention.{theirs}" for ours, theirs in _BLIP2_ATTENTION.items()},
    "cross_attn.o_proj": "crossattention.output.dense",
    "cross_attn_norm": "crossattention.output.LayerNorm",
    "fc1": "intermediate_query.dense",
    "fc2": "output_query.dense",
    "mlp_norm": "output_query.LayerNorm",
}


def to_hf(connector: nn.Module) -> dict[str, Tensor]:
    """The connector's weights by transformers' names; ``TypeError`` for a kind that transformers has not."""
    state = connector.state_dict()
    return {theirs: state[ours] for ours, theirs in _names(connector).items()}


def load_hf(connector: nn.Module, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Replaces the weights by those of ``state`` whose names begin with ``prefix``, such as ``multi_modal_projector.``.

    Of a whole model's ``state``, the other modules are left alone. ``DataLossError`` where weights lack, are unknown or
    have another shape; then nothing was replaced.
    """
    names = {prefix + theirs: ours for ours, theirs in _names(connector).items()}
    roots = {name.removeprefix(prefix).split(".")[0] for name in names}
    found = {name for name in state if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in roots}
    expected = connector.state_dict()
    problems = [f"lacks {name}" for name in names.keys() - found]
    problems += [f"has an unknown {name}" for name in found - names.keys()]
    for name in names.keys() & found:
        if (want := expected[names[name]].shape) != state[name].shape:
            problems.append(f"{name} is {list(state[name].shape)}, expected {list(want)}")
    if problems:
        raise DataLossError(f"weights do not fit {type(connector).__name__}: {'; '.join(sorted(problems)[:5])}")
    connector.load_state_dict({ours: state[name] for name, ours in names.items()})


def _names(connector: nn.Module) -> dict[str, str]:
    """Every weight's name -> transformers' name."""
    modules = _modules(connector)
    return {name: _renamed(name, modules) for name in connector.state_dict()}


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    start = next(start for start in modules if name == start or name.startswith(f"{start}."))
    return modules[start] + name.removeprefix(start)


def _modules(connector: nn.Module) -> dict[str, str]:
    if isinstance(connector, MlpConnector):
        return _LLAVA
    if isinstance(connector, PerceiverResampler):
        return _IDEFICS2
    if isinstance(connector, PixelShuffleConnector):
        return _IDEFICS3 if isinstance(connector.proj, nn.Linear) else _INTERNVL
    if isinstance(connector, QFormer):
        return _blip2(len(connector.blocks))
    raise TypeError(f"transformers has no connector like {type(connector).__name__}")


def _blip2(num_layers: int) -> dict[str, str]:
    blocks = {
        f"blocks.{index}.{ours}": f"qformer.encoder.layer.{index}.{theirs}"
        for index in range(num_layers)
        for ours, theirs in _BLIP2_BLOCK.items()
    }
    return {"query_tokens": "query_tokens", "norm": "qformer.layernorm", "proj": "language_projection", **blocks}

"""The mixture-of-experts layer: stands where a transformer layer's feed-forward block stands."""

# Shape suffixes: T tokens, E experts, D width, F hidden.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from rebus import registry
from rebus.models.moe.activations import ACTIVATIONS
from rebus.models.moe.capacity import Priority, limit
from rebus.models.moe.dispatch import dispatch
from rebus.models.moe.experts import ActivationName, Experts, Kernel
from rebus.models.moe.routing import Routing
from rebus.registry import Spec


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """The router, the experts, and what happens when too many tokens want one."""

    router: Spec = registry.component("router", "top-k")
    num_experts: int = 8
    # Inner width of each expert.
    hidden_width: int = 344
    activation: ActivationName = "swiglu"
    # An expert takes this many times its even share of tokens; 0: all that want it.
    capacity_factor: float = 0.0
    # Who comes first where there is a limit; see ``rebus.models.moe.capacity.limit``.
    priority: Priority = "order"
    # Experts that see every token, computed as one block of as many times ``hidden_width`` (DeepSeekMoE).
    num_shared_experts: int = 0
    # How the experts' products are computed; a matter of speed alone, and so no difference between two configs.
    kernel: Kernel = field(default="auto", compare=False)

    def __post_init__(self) -> None:
        for name in ("num_experts", "hidden_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("capacity_factor", "num_shared_experts"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name, known in (
            ("activation", tuple(ACTIVATIONS)),
            ("priority", ("order", "score")),
            ("kernel", ("auto", "grouped", "segments")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")


class SharedExperts(nn.Module):
    """A feed-forward block every token passes, of the same activation as the experts."""

    def __init__(self, *, width: int, hidden_width: int, activation: ActivationName) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.in_proj = nn.Linear(width, self.activation.fan_in * hidden_width, bias=False)
        self.down_proj = nn.Linear(hidden_width, width, bias=False)
        for projection in (self.in_proj, self.down_proj):
            nn.init.normal_(projection.weight, std=0.02)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``."""
        return self.down_proj(self.activation(self.in_proj(x_TD)))


class MoeLayer(nn.Module):
    """Each token passes the experts its router chose, and the shared ones.

    ``routing`` holds what the router decided in the last forward pass until ``take_routing`` collects it: losses and
    statistics need no global state, and the layer's output stays a tensor like any feed-forward block's.
    """

    def __init__(self, config: MoeConfig, *, width: int) -> None:
        super().__init__()
        self.config = config
        self.gate = registry.build(
            "router", config.router, field="moe.router", width=width, num_experts=config.num_experts
        )
        self.experts = Experts(
            num_experts=config.num_experts,
            width=width,
            hidden_width=config.hidden_width,
            activation=config.activation,
            kernel=config.kernel,
        )
        self.shared_experts = (
            SharedExperts(
                width=width,
                hidden_width=config.num_shared_experts * config.hidden_width,
                activation=config.activation,
            )
            if config.num_shared_experts
            else None
        )
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``; all leading dimensions are tokens, routed as one batch."""
        x_TD = x.reshape(-1, x.shape[-1])
        routing: Routing = self.gate(x_TD)
        if self.config.capacity_factor:
            routing = limit(routing, self.config.capacity_factor, self.config.priority)
        self.routing = routing
        out_TD = self.experts(x_TD, dispatch(routing))
        if self.shared_experts is not None:
            out_TD = out_TD + self.shared_experts(x_TD)
        return out_TD.view(x.shape)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last routing: copies of a layer must not carry a graph."""
        return {**self.__dict__, "routing": None}

"""Optimizers by name. Each builder takes a module's named parameters and returns optimizers that together own them.

Every parameter group carries ``peak_lr``; the loop sets ``lr`` from it by the schedule before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from rebus.registry import register

NamedParameters = Mapping[str, nn.Parameter]
# Tables whose rows are looked up, not multiplied: Muon's orthogonal updates do not suit them.
_TABLES = ("embed_tokens", "lm_head", "position")
# Quintic Newton-Schulz coefficients: steep at 0, and bounded near 1 (Jordan et al., Muon, 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (arXiv 1711.05101)."""

    # Peak learning rate; the schedule scales it.
    lr: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    # Applied to matrices only, scaled by the learning rate.
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.weight_decay < 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"need lr={self.lr} > 0, weight_decay={self.weight_decay} >= 0, betas in [0, 1)")


@register("optimizer", "adamw", config=AdamWConfig)
def adamw(config: AdamWConfig, parameters: NamedParameters) -> list[Optimizer]:
    """AdamW; norms, biases and other vectors are not decayed."""
    decayed = [p for p in parameters.values() if p.dim() > 1]
    others = [p for p in parameters.values() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "peak_lr": config.lr}
        for members, decay in ((decayed, config.weight_decay), (others, 0.0))
        if members
    ]
    # foreach: one fused pass over many small tensors; the same sums as the loop, in the same order.
    return [AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, foreach=True)]


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for the hidden matrices, AdamW for everything else."""

    # Peak learning rate of the matrices: the size of an orthogonal step.
    matrix_lr: float = 0.02
    momentum: float = 0.95
    # Newton-Schulz iterations.
    iterations: int = 5
    # Applied to the matrices, scaled by their learning rate.
    matrix_decay: float = 0.01
    # Everything that is no hidden matrix.
    others: AdamWConfig = AdamWConfig()

    def __post_init__(self) -> None:
        if self.matrix_lr <= 0 or self.iterations < 1 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"need matrix_lr={self.matrix_lr} > 0, iterations={self.iterations} >= 1, "
                f"momentum={self.momentum} in [0, 1)"
            )


@register("optimizer", "muon", config=MuonConfig)
def muon(config: MuonConfig, parameters: NamedParameters) -> list[Optimizer]:
    """Muon on 2-D weights but embeddings, AdamW on the rest."""
    matrices = {n: p for n, p in parameters.items() if p.dim() == 2 and not any(table in n for table in _TABLES)}
    rest = {n: p for n, p in parameters.items() if n not in matrices}
    optimizers: list[Optimizer] = [Muon(matrices.values(), config)] if matrices else []
    return optimizers + (adamw(config.others, rest) if rest else [])


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """Brings the singular values of ``[B, m, n]`` matrices near 1 by a quintic Newton-Schulz iteration.

    In float32: on CPUs without bfloat16 units the customary bfloat16 is an order of magnitude slower.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum with orthogonalized updates; matrices of one shape are orthogonalized together."""

    def __init__(self, matrices: Iterable[nn.Parameter], config: MuonConfig) -> None:
        group = {"params": list(matrices), "peak_lr": config.matrix_lr}
        super().__init__([group], {"lr": config.matrix_lr})
        self._config = config

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for members in by_shape.values():
                self._update(members, group["lr"])

    def _update(self, members: list[nn.Parameter], lr: float) -> None:
        update = torch.stack([self._momentum(parameter) for parameter in members])
        rows, columns = members[0].shape
        # Keeps the root mean square of the change of a layer's output alike for wide and tall matrices.
        update = orthogonalize(update, self._config.iterations) * max(1.0, rows / columns) ** 0.5
        for parameter, change in zip(members, update, strict=True):
            parameter.mul_(1 - lr * self._config.matrix_decay).add_(change, alpha=-lr)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov momentum of the gradient."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer = state["momentum"].lerp_(gradient, 1 - self._config.momentum)
        return gradient.lerp(buffer, self._config.momentum)

"""The one extension point: components register under a kind and a name; recipes name them.

A component is a class or function together with the typed dataclass of its settings::

    @register("connector", "mlp", config=MlpConfig, paper="mm1")
    class MlpConnector(nn.Module):
        def __init__(self, config: MlpConfig, *, width_in: int, width_out: int) -> None: ...

Modules that hold components are imported only when a kind is first looked up, so naming a component in a recipe
costs nothing until it is built.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar

from rebus import config as configs
from rebus.errors import invalid

# Where each kind's components live; imported on first use of the kind.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "reader": ("rebus.data.readers",),
    "exporter": ("rebus.data.exporters",),
    "curator": ("rebus.data.curators",),
    "embedder": ("rebus.retrieval.embedder",),
    "mixer": ("rebus.data.mixers",),
    "splitter": ("rebus.data.preprocess.splitters",),
    "frame-sampler": ("rebus.data.preprocess.frames",),
    "encoder": ("rebus.models.encoders",),
    "text-encoder": ("rebus.models.text_encoders",),
    "connector": ("rebus.models.connectors",),
    "embedding-head": ("rebus.models.embedding_heads",),
    "decoder": ("rebus.models.decoders",),
    "router": ("rebus.models.moe.routers",),
    "objective": ("rebus.objectives",),
    "schedule": ("rebus.training.schedules",),
    "optimizer": ("rebus.training.optimizers",),
    "task": ("rebus.training.tasks",),
    "sampler": ("rebus.generation.samplers",),
    "index": ("rebus.retrieval.indexes",),
    "benchmark": ("rebus.evaluation.benchmarks",),
    "metric": ("rebus.evaluation.metrics",),
}

_COMPONENTS: dict[str, dict[str, Component]] = {}
# A component by name with its settings: ``{"name": "adamw", "lr": 3e-4}``.
Spec = dict[str, Any]
T = TypeVar("T")
_KIND = "component_kind"


@dataclass(frozen=True)
class NoSettings:
    """Settings of a component that has none."""


@dataclass(frozen=True)
class Component:
    """A registered component: what builds it, the dataclass of its settings, the papers it comes from."""

    kind: str
    name: str
    target: Callable[..., Any]
    config: type
    papers: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first line of the component's docstring."""
        return (self.target.__doc__ or "").strip().partition("\n")[0]


def component(kind: str, default: str | Sequence[str]) -> Any:
    """A field of a config dataclass that holds the ``Spec`` of another component; checked with the config.

    With a sequence of names, the field is a list of them.
    """

    def make() -> Spec | list[Spec]:
        return {"name": default} if isinstance(default, str) else [{"name": name} for name in default]

    return dataclasses.field(default_factory=make, metadata={_KIND: kind})


def register(kind: str, name: str, *, config: type = NoSettings, paper: str | tuple[str, ...] = ()) -> Callable[[T], T]:
    """Registers the decorated class or function; ``paper`` holds ids of the catalogue (``rebus papers``)."""
    if kind not in PROVIDERS:
        raise ValueError(f"unknown component kind {kind!r}; kinds: {', '.join(PROVIDERS)}")
    if not is_dataclass(config):
        raise TypeError(f"{kind} {name!r}: config must be a dataclass, got {config!r}")
    papers = (paper,) if isinstance(paper, str) else paper

    def add(target: T) -> T:
        known = _COMPONENTS.setdefault(kind, {})
        if name in known and known[name].target is not target:
            raise ValueError(f"{kind} {name!r} is registered twice")
        known[name] = Component(kind, name, target, config, papers)  # pyright: ignore[reportArgumentType]
        return target

    return add


def _load(kind: str) -> dict[str, Component]:
    if kind not in PROVIDERS:
        raise invalid("kind", f"unknown component kind {kind!r}; kinds: {', '.join(PROVIDERS)}")
    for module in PROVIDERS[kind]:
        importlib.import_module(module)
    return _COMPONENTS.setdefault(kind, {})


def components(kind: str | None = None) -> list[Component]:
    """All components of a kind (or of every kind), sorted by kind and name."""
    kinds = list(PROVIDERS) if kind is None else [kind]
    return [_load(k)[name] for k in sorted(kinds) for name in sorted(_load(k))]


def get(kind: str, name: str, *, field: str | None = None) -> Component:
    """The component of that name; an unknown one is an error that lists near matches and names ``field``."""
    known = _load(kind)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(sorted(known))}"
    raise invalid(field or f"{kind}.name", f"unknown {kind} {name!r}; {hint}")


def settings(kind: str, spec: Mapping[str, Any], *, field: str | None = None) -> tuple[Component, Any]:
    """Splits ``{"name": ..., **settings}`` into the component and its validated config instance.

    Components that the config names in turn (fields made by ``component``) are checked too.
    """
    where = field or kind
    values = dict(spec)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise invalid(f"{where}.name", f"expected the name of a {kind}, found {name!r}")
    found = get(kind, name, field=f"{where}.name")
    config = configs.build(found.config, values, where=where)
    check_components(config, field=where)
    return found, config


def check_components(config: Any, *, field: str) -> None:
    """Checks every component that a config dataclass names, at any depth; errors name its path below ``field``."""
    for item in dataclasses.fields(config):
        value, where = getattr(config, item.name), f"{field}.{item.name}"
        if _KIND in item.metadata and isinstance(value, list):
            for at, spec in enumerate(value):
                settings(item.metadata[_KIND], spec, field=f"{where}[{at}]")
        elif _KIND in item.metadata:
            settings(item.metadata[_KIND], value, field=where)
        elif is_dataclass(value):
            check_components(value, field=where)


def build(kind: str, spec: Mapping[str, Any], *args: Any, field: str | None = None, **kwargs: Any) -> Any:
    """Builds a component from ``{"name": ..., **settings}``: calls ``target(config, *args, **kwargs)``."""
    component, config = settings(kind, spec, field=field)
    return component.target(config, *args, **kwargs)

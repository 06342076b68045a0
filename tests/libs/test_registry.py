from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from rebus import registry
from rebus.errors import InvalidArgumentError, RebusError
from rebus.status import error_class, from_status, to_status


@dataclass(frozen=True)
class Settings:
    size: int = 3


@dataclass(frozen=True)
class Inner:
    projector: registry.Spec = registry.component("connector", "average-pool")


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.setattr(registry, "PROVIDERS", {"connector": ()})
    monkeypatch.setattr(registry, "_COMPONENTS", {})

    @registry.register("connector", "average-pool", config=Settings, paper="mm1")
    class AveragePool:
        """Pools patches.

        More text.
        """

        def __init__(self, config: Settings, width: int) -> None:
            self.size, self.width = config.size, width

    return AveragePool


def test_builds_by_name_with_settings(connector: type) -> None:
    built = registry.build("connector", {"name": "average-pool", "size": 5}, width=7)
    assert (built.size, built.width) == (5, 7)
    component = registry.get("connector", "average-pool")
    assert (component.papers, component.summary) == (("mm1",), "Pools patches.")


def test_an_unknown_name_lists_near_matches(connector: type) -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean 'average-pool'") as caught:
        registry.build("connector", {"name": "avg-pool"}, field="recipe.model.connector")
    assert caught.value.violations[0].field == "recipe.model.connector.name"


def test_an_unknown_setting_names_its_path(connector: type) -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean 'size'") as caught:
        registry.build("connector", {"name": "average-pool", "sise": 1}, field="recipe.model.connector")
    assert caught.value.violations[0].field == "recipe.model.connector.sise"


def test_a_component_named_by_settings_is_checked_with_them(connector: type) -> None:
    registry.register("connector", "stack", config=Outer)(object)
    registry.settings("connector", {"name": "stack"})
    bad = {"name": "stack", "inner": {"projector": {"name": "average-pool", "sise": 1}}}
    with pytest.raises(InvalidArgumentError, match="did you mean 'size'") as caught:
        registry.settings("connector", bad, field="recipe.task")
    assert caught.value.violations[0].field == "recipe.task.inner.projector.sise"


def test_a_duplicate_is_an_error(connector: type) -> None:
    with pytest.raises(ValueError, match="'average-pool' is registered twice"):
        registry.register("connector", "average-pool")(object())


def test_every_error_survives_the_wire() -> None:
    own = [cls for cls in RebusError.__subclasses__() if cls.__module__ == RebusError.__module__]
    assert own
    for cls in (RebusError, *own):
        error = cls("text", metadata={"k": "v"})
        back = from_status(to_status(error))
        assert (type(back), str(back), back.metadata) == (cls, "text", {"k": "v"})
        assert error_class(cls.reason) is cls


@pytest.mark.parametrize(
    "module", ["rebus.client", "pipelines", "tools", "rebus.jobs.supervisor", "services.harness.server"]
)
def test_importing_is_cheap(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'lance', 'faiss'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rebus.config import build, canonical_json, digest, load_yaml, merge, parse_yaml
from rebus.errors import InvalidArgumentError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")


@dataclass(frozen=True, kw_only=True)
class Stage:
    steps: int
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    stages: list[Stage] = field(default_factory=list)
    weights: dict[str, Optimizer] = field(default_factory=dict)


def test_builds_nested_dataclasses() -> None:
    recipe = build(Recipe, {"name": "x", "stages": [{"steps": 3, "optimizer": {"learning_rate": 1}}]})
    assert recipe == Recipe(name="x", stages=[Stage(steps=3, optimizer=Optimizer(learning_rate=1.0))])


@pytest.mark.parametrize(
    ("values", "field_path", "text"),
    [
        ({"nam": "x"}, "recipe.name", "required"),
        ({"name": "x", "stagse": []}, "recipe.stagse", "did you mean 'stages'?"),
        ({"name": "x", "stages": [{"step": 1}]}, "recipe.stages.0.step", "did you mean 'steps'?"),
        (
            {"name": "x", "stages": [{"steps": 1, "optimizer": {"learning_rat": 1}}]},
            "recipe.stages.0.optimizer.learning_rat",
            "did you mean 'learning_rate'?",
        ),
        ({"name": "x", "weights": {"a": {"beta": 1}}}, "recipe.weights.a.beta", "did you mean 'betas'?"),
        ({"name": "x", "stages": [{"steps": "many"}]}, "recipe.stages.0.steps", "found 'many'"),
        (
            {"name": "x", "stages": [{"steps": 1, "optimizer": {"learning_rate": -1}}]},
            "recipe.stages.0.optimizer",
            "learning_rate=-1.0 must be positive",
        ),
    ],
)
def test_a_bad_field_is_named_with_the_nearest_valid_one(values: dict[str, object], field_path: str, text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        build(Recipe, values)
    descriptions = {v.field: v.description for v in caught.value.violations}
    assert text in descriptions[field_path]


def test_every_bad_field_is_named_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        build(Recipe, {"name": 3, "stages": [{"steps": "x"}], "extra": 1})
    assert {v.field for v in caught.value.violations} == {"recipe.name", "recipe.stages.0.steps", "recipe.extra"}


def test_base_is_laid_under(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nmodel: {width: 1, depth: 2}\nstages: [1, 2]\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\nname: own\nmodel: {width: 3}\nstages: [9]\n")
    assert load_yaml(tmp_path / "own.yaml") == {"name": "own", "model": {"width": 3, "depth": 2}, "stages": [9]}


@pytest.mark.parametrize("base", ["../other.yaml", "/etc/passwd", "loop.yaml"])
def test_base_stays_beside_the_file_and_ends(tmp_path: Path, base: str) -> None:
    (tmp_path / "loop.yaml").write_text(f"base: {base}\n")
    with pytest.raises(InvalidArgumentError, match=r"recipe\.base"):
        load_yaml(tmp_path / "loop.yaml")


@pytest.mark.parametrize("text", ["- 1", "a: [", "!!python/object/apply:os.system ['true']", ""])
def test_yaml_that_is_no_plain_mapping_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="recipe"):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("a: 2001-01-01", "recipe.a", "found another date"),
        ("a: {b: [1, .nan]}", "recipe.a.b[1]", "found another float"),
        ("a: 0x" + "f" * 5000, "recipe.a", "found another int"),
        ('a: "\\ud800"', "recipe.a", "found another str"),
        ("a: {1: 2}", "recipe.a", "expected keys that are text"),
        ("a: 2001-99-99", "recipe", "month must be in 1..12"),
        ("a: 1" + "0" * 5000, "recipe", "not valid YAML"),
        ("a: " + "[" * 1000, "recipe", "not valid YAML"),
        ("a: &x [*x]", "recipe", "nested more than"),
        ("a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e]",
         "recipe", "holds more than 100000 values"),
    ],
)  # fmt: skip
def test_yaml_that_has_no_plain_form_is_refused(text: str, field: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        parse_yaml(text)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_digest_is_of_content_not_of_order_or_container() -> None:
    assert digest({"a": (1, 2), "b": Optimizer()}) == digest(
        {"b": {"betas": [0.9, 0.999], "learning_rate": 1e-3}, "a": [1, 2]}
    )
    assert digest({"a": 1}) != digest({"a": 2})
    assert canonical_json({"é": 1}) == '{"é":1}'.encode()


def test_merge_leaves_its_inputs_alone() -> None:
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}

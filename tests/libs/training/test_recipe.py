"""What a recipe is checked for before a run is queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rebus.config import load_yaml, merge
from rebus.errors import InvalidArgumentError
from rebus.training.recipe import recipe_from_mapping

RECIPES = Path(__file__).resolve().parents[3] / "pipelines" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_recipe_is_valid(path: Path) -> None:
    assert recipe_from_mapping(load_yaml(path)).total_steps > 0


def stage(**settings: Any) -> dict[str, Any]:
    return {"name": "s", "steps": 1, **settings}


@pytest.mark.parametrize(
    ("recipe", "changes", "field"),
    [
        ("scenes", {"stagez": []}, "recipe.stagez"),
        ("scenes", {"task": {"name": "mlm"}}, "recipe.task.name"),
        ("scenes", {"task": {"connector": {"name": "mpl"}}}, "recipe.task.connector.name"),
        ("scenes", {"task": {"decoder": {"num_layer": 2}}}, "recipe.task.decoder.num_layer"),
        ("emoji", {"task": {"model": {"text_encoder": {"name": "ngram"}}}}, "recipe.task.model.text_encoder.name"),
        ("emoji", {"stages": [{"name": "s", "steps": 1, "optimizer": {"name": "adam"}}]}, "recipe.stages.0.optimizer"),
        ("emoji", {"stages": [{"name": "s", "steps": 1, "mixture": {"x": 1.0}}]}, "recipe.stages.0.mixture.x"),
        ("emoji", {"stages": [{"name": "s", "steps": 1, "mixer": {"name": "odn"}}]}, "recipe.stages.0.mixer.name"),
        ("scenes", {"stages": [stage(mixture={"text": -1.0})]}, "recipe.stages.0"),
        ("scenes", {"stages": [stage(pack={"max_token": 64})]}, "recipe.stages.0.pack.max_token"),
        ("scenes", {"stages": [stage(pack={"max_tokens": 64, "buffer": 0})]}, "recipe.stages.0.pack"),
        (
            "scenes",
            {"stages": [stage(mixture_changes=[{"from_sample": 5, "mixture": {"x": 1.0}}])]},
            "recipe.stages.0.mixture_changes.0.mixture.x",
        ),
        (
            "scenes",
            {"stages": [stage(mixture_changes=[{"from_sample": at, "mixture": {"text": 1.0}} for at in (9, 5)])]},
            "recipe.stages.0",
        ),
        (
            "scenes",
            {"stages": [stage(mixer={"name": "vlm-when-images", "total_samples": 9, "image_sources": ["txt"]})]},
            "recipe.stages.0.mixer",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_path(recipe: str, changes: dict[str, Any], field: str) -> None:
    values = merge(load_yaml(RECIPES / f"quickstart-{recipe}.yaml"), changes)
    with pytest.raises(InvalidArgumentError) as caught:
        recipe_from_mapping(values)
    assert caught.value.violations[0].field.startswith(field)

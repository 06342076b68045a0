"""Recipes as users name them: a packaged one by its name, a file by its path, or the YAML itself."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from rebus.config import load_yaml, parse_yaml
from rebus.errors import invalid

RECIPES = Path(__file__).resolve().parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """A recipe's values, its ``base`` resolved: ``quickstart-scenes``, ``my/recipe.yaml``, or YAML text (a mapping
    of more than one line, which has no ``base``)."""
    if "\n" in recipe:
        return parse_yaml(recipe)
    if recipe.endswith((".yaml", ".yml")):
        return load_yaml(Path(recipe))
    if recipe not in recipe_names():
        near = difflib.get_close_matches(recipe, recipe_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"packaged recipes: {', '.join(recipe_names())}."
        raise invalid("recipe", f"no recipe {recipe!r}; {hint} A file's path ends in .yaml.")
    return load_yaml(RECIPES / f"{recipe}.yaml")

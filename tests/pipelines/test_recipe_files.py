from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import recipe_files
from rebus.errors import InvalidArgumentError


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.yaml").write_text("name: small\nseed: 1\n")
    (tmp_path / "smaller.yaml").write_text("base: small.yaml\nname: smaller\n")
    monkeypatch.setattr(recipe_files, "RECIPES", tmp_path)
    return tmp_path


def test_by_name_by_path_and_as_text(recipes: Path) -> None:
    assert recipe_files.recipe_names() == ["small", "smaller"]
    assert recipe_files.read_recipe("smaller") == {"name": "smaller", "seed": 1}
    assert recipe_files.read_recipe(str(recipes / "small.yaml")) == {"name": "small", "seed": 1}
    assert recipe_files.read_recipe("name: mine\nseed: 2\n") == {"name": "mine", "seed": 2}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("smal", "did you mean 'small'"),
        ("../small", "did you mean 'small'"),
        ("zzz", "packaged recipes: small, smaller"),
        ("/absent/x.yaml", "no such file"),
        ("- a\n- b\n", "expected a mapping"),
    ],
)
def test_errors_say_what_is_there(recipes: Path, recipe: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        recipe_files.read_recipe(recipe)

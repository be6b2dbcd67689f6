"""Read a recipe: YAML and ``key.path=value`` overrides in, a ``Recipe`` or one line for each mistake out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from prefopt.errors import RecipeError
from prefopt.recipe.explain import explain, missing_file
from prefopt.recipe.overrides import apply_overrides
from prefopt.recipe.recipe import SCHEMA, Recipe
from prefopt.recipe.strict_yaml import Document, parse_yaml, read_yaml


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides.

    Raises:
        RecipeError: the file, an override or a setting is wrong; one line for each mistake.
    """
    if not Path(path).is_file():
        raise missing_file(Path(path))
    return _validated(read_yaml(path), overrides)


def parse_recipe(text: str, overrides: Sequence[str] = (), name: str = "recipe") -> Recipe:
    """Read a recipe from YAML text; ``name`` stands for the file in errors.

    Raises:
        RecipeError: the text, an override or a setting is wrong; one line for each mistake.
    """
    return _validated(parse_yaml(text, name), overrides)


def overridden(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe that was read, with further overrides on top.

    Raises:
        RecipeError: an override, or the recipe with it, is wrong.
    """
    return _validated(recipe._document, overrides)


def _validated(document: Document, overrides: Sequence[str]) -> Recipe:
    if document.value is None:
        raise RecipeError(f"{document.name}: is empty. Start from one of the files in recipes/.")
    if not isinstance(document.value, dict):
        raise RecipeError(
            f"{document.name}:1:1: a recipe is a list of `key: value` blocks, not a bare value."
        )
    document = apply_overrides(document, overrides)
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        lines = explain(error.errors(include_url=False), document, SCHEMA)
        raise RecipeError("\n".join(lines)) from None
    recipe._document = document
    return recipe

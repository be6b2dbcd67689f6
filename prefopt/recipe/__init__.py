"""The schema of a recipe: every setting of a run, its type, its legal values and its default.

Nothing is accepted that is not written in one of the blocks, nothing is converted, and every mistake is one line that
names its place. From the ground up:

    strict_yaml, overrides          text -> plain values and where each stood
    names, explain                  settings by name; mistakes in words
    blocks                          what blocks are made of
    model, data, training,          a block each, or a few
      optim, references
    recipe                          all of them together
    load                            text -> ``Recipe``
    diff                            two recipes -> the settings that differ

The ``loss`` block stays a plain mapping; losses check their own settings.
"""

from prefopt.recipe.data import DataSource, Rows
from prefopt.recipe.load import load_recipe, overridden, parse_recipe
from prefopt.recipe.model import Lora, Model
from prefopt.recipe.optim import Optim
from prefopt.recipe.recipe import SCHEMA, Recipe
from prefopt.recipe.training import Batch, Eval, Train

__all__ = [
    "SCHEMA",
    "Batch",
    "DataSource",
    "Eval",
    "Lora",
    "Model",
    "Optim",
    "Recipe",
    "Rows",
    "Train",
    "load_recipe",
    "overridden",
    "parse_recipe",
]

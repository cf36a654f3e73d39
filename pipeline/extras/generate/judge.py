"""The classifier that recognizes generated digits, and whose features are compared."""

from pipeline.recipes import config
from pipeline.recipes.settings import Recipe
from pipeline.training import specs
from pipeline.workflow.run import Run
from pipeline.workflow.store import Manifest

JUDGE = "quick"  # its recipe


def judge_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the classifier, on the same rows as the generator of a recipe."""
    return config.load_recipe(JUDGE).replace(split=recipe.split, augment=recipe.augment)


def judge_digest(recipe: Recipe) -> str:
    """Identifies the settings of the classifier, which `generate` does not read from its own recipe."""
    return config.digest(config.flatten(judge_recipe(recipe), ("affine", "model", "train")))


def code(recipe: Recipe) -> tuple[str, ...]:
    """The modules whose code determines the classifier."""
    return specs.training_code(judge_recipe(recipe))


def why_stale(run: Run, manifest: Manifest) -> str:
    """Why digits that another classifier judged are stale; "" if it was this one."""
    is_equal = manifest["numbers"].get("judge") == judge_digest(run.recipe)
    return "" if is_equal else f"the recipe {JUDGE} changed"

"""MODEL_CARD.md: texts of a recipe within it."""

from pipeline.extras.export import model_card
from pipeline.recipes import config
from tests.reports.test_markdown import HOSTILE, require_harmless


def test_the_description_of_a_recipe_is_only_text():
    recipe = config.load_recipe("quick").replace(about=HOSTILE)
    network = {"model": {"name": "small_cnn"}, "fit_all": True, "fold": None, "precision": "fp32"}
    require_harmless(model_card.render(recipe, [network], {"rows": 0, "why_none": "trained on all rows"}, None, {}))

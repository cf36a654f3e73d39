"""The example by hand gives the same submission as the pipeline."""

import pytest

from examples import by_hand
from pipeline.dataset.tables import encode_submission
from pipeline.recipes.config import load_recipe
from tests.conftest import TINY, run_all, write_tables

# Offline variants, a view, several copies of each image, and the epoch with the lowest validation loss.
MORE = ("augment.angles=[5]", "model.view=deskewed", "predict.shifts=[[0, 0], [2, -1]]", "train.epochs=3")
MORE += ("train.checkpoint_selection=best",)


@pytest.mark.parametrize("assignments", [(), MORE], ids=["short", "with more"])
def test_the_example_predicts_what_the_pipeline_predicts(tables, tmp_path, assignments):
    options = [option for assignment in assignments for option in ("--set", assignment)]
    workspace = run_all(tmp_path / "work", tables, [*TINY, *options])
    folder = write_tables(tmp_path / "tables", tables)
    recipe = load_recipe("quick", [*TINY[3::2], *assignments])
    digits = by_hand.classify(folder, recipe, "cpu")
    assert encode_submission(digits) == (workspace / "submissions/quick/submission.csv").read_bytes()


def test_the_example_is_short():
    with open(by_hand.__file__) as file:
        assert len(file.readlines()) <= 80

"""generated_study: distances to the nearest training rows, and what the classifier predicts."""

import numpy as np

from pipeline.analysis import generated_study
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(50)


def test_nearest_training_rows_are_those_of_plain_loops():
    flat, training = IMAGES[:20].reshape(20, -1) / 255, IMAGES[20:].reshape(30, -1) / 255
    distances = [[np.linalg.norm(first - second) for second in training] for first in flat]
    nearest = generated_study._find_nearest(IMAGES[:20], IMAGES[20:])
    assert np.allclose(nearest.distances, np.min(distances, 1), atol=1e-5)
    assert nearest.rows.tolist() == np.argmin(distances, 1).tolist()

"""generated_study: distances to the nearest training rows, and what the classifier predicts."""

import numpy as np
import pytest
import torch

from pipeline.extras.generate import study
from pipeline.nn import precision
from pipeline.nn.networks import LoadedNetwork
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(50)


def test_nearest_training_rows_are_those_of_plain_loops():
    flat, training = IMAGES[:20].reshape(20, -1) / 255, IMAGES[20:].reshape(30, -1) / 255
    distances = [[np.linalg.norm(first - second) for second in training] for first in flat]
    nearest = study._find_nearest(IMAGES[:20], IMAGES[20:])
    assert np.allclose(nearest.distances, np.min(distances, 1), atol=1e-5)
    assert nearest.rows.tolist() == np.argmin(distances, 1).tolist()


@pytest.mark.parametrize(("fast", "prediction"), [(("fp32", "bf16"), 3), (("fp32",), 7)])
def test_the_classifier_predicts_in_the_precision_that_evaluate_uses(monkeypatch, fast, prediction):
    monkeypatch.setattr(precision, "is_fast", lambda name, device: name in fast)
    last = torch.nn.Linear(784, 10)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    last.weight.data[3], last.weight.data[7] = 1, 1.001  # equal in bf16, where the first digit wins
    judge = LoadedNetwork(
        torch.nn.Sequential(torch.nn.Flatten(), last), {"model": {"view": "plain"}, "precision": "bf16"}
    )
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 14, 14] = 255
    digits = study.LabelledDigits(image, np.array([7], np.uint8))
    assert study._classify(digits, judge, "cpu").predictions.tolist() == [prediction]

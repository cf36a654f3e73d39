"""Temperature scaling: probabilities that are correct as often as they say."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from pipeline.shapes import Float, Float64, UInt8

MIN_PROBABILITY = 1e-12
UNSURE_BELOW = 0.9  # calibrated probability of the most probable digit
LIMITS = (0.05, 20.0)  # of the temperature


def calibrate(probabilities: Float[np.ndarray, "n 10"], temperature: float) -> Float64[np.ndarray, "n 10"]:
    """Divide the logarithms of probabilities by a temperature, and normalize: below 1, they become more certain.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), MIN_PROBABILITY)) / temperature
    calibrated: Float64[np.ndarray, "n 10"] = softmax(logits, axis=1)
    return calibrated


def fit_temperature(probabilities: Float[np.ndarray, "n 10"], labels: UInt8[np.ndarray, " n"]) -> float:
    """The temperature with the least cross entropy on rows that the networks were not trained on.

    The labels are smoothed by 1 / (rows + 2): without errors, the best temperature would be 0. Source: J. Platt,
    Probabilistic Outputs for Support Vector Machines, 1999.
    """
    smoothing = 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        calibrated = calibrate(probabilities, float(np.exp(log_temperature)))
        logs = np.log(np.maximum(calibrated, MIN_PROBABILITY))
        correct = logs[np.arange(len(labels)), labels]
        return -float(((1 - smoothing) * correct + smoothing * logs.mean(1)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded").x))

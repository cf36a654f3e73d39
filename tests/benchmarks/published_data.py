"""Reference: the published code up to training, rewritten plainly.

pandas reads float32, scipy transforms one image at a time in float64, and `np.r_` concatenates the results.
"""

import numpy as np
import pandas as pd
import scipy.ndimage

SHIFTS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # right, down
ANGLES = (10, -10)


def read(path):
    """Images (n, 784) float32 and labels (n,) float32 of train.csv."""
    frame = pd.read_csv(path, dtype=np.float32)
    return frame.drop(columns="label").to_numpy(), frame["label"].to_numpy()


def augment(images, labels):
    """Images (7n, 784) float64 and labels (7n,): the originals, four shifts, two rotations."""

    def shift(row, right, down):
        return scipy.ndimage.shift(row.reshape(28, 28).astype(np.float64), (down, right), cval=0).ravel()

    def rotate(row, angle):
        return scipy.ndimage.rotate(row.reshape(28, 28).astype(np.float64), angle, cval=0, reshape=False).ravel()

    variants = [np.apply_along_axis(shift, 1, images, right, down) for right, down in SHIFTS]
    variants += [np.apply_along_axis(rotate, 1, images, angle) for angle in ANGLES]
    return np.r_[(images, *variants)], np.tile(labels, 1 + len(variants))

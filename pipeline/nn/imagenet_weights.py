"""Reading a file with weights trained on ImageNet."""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import StageError
from pipeline.nn.networks import require_trainable
from pipeline.nn.saved_tensors import load_tensors
from pipeline.recipes.settings import Model

LAST_LAYER = "classifier.6"  # of ImageNet's 1,000 classes; not used
OTHER_BYTES = 1 << 20  # of a file, at most: names and shapes


def read_weights(path: Path, model: Model) -> dict[str, Tensor]:
    """The weights in a file, by name, for all layers of a network except the last.

    Raises StageError if it is no such file, if it is larger than such a file in float64, or if a weight is missing,
    unknown, or has another shape.
    """
    if not path.is_file():  # on a machine of a cluster with a disk of its own
        raise StageError(f"{path} does not exist on the machine that trains: put the file there")
    own = require_trainable(model, batch_size=2).state_dict()
    # The last layer has 1,000 outputs instead of 10.
    n_weights = sum(value.numel() * (100 if key.startswith(LAST_LAYER) else 1) for key, value in own.items())
    try:
        with open(path, "rb") as file:
            loaded = load_tensors(file, 8 * n_weights + OTHER_BYTES)
    except Exception as error:  # torch.load raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise StageError(f"{path}: not weights that PyTorch saved, or an incomplete file ({reason})") from None
    if not isinstance(loaded, dict):
        raise StageError(f"{path}: contains a {type(loaded).__name__}, expected a dict from names to weights")
    own = {key: value for key, value in own.items() if not key.startswith(f"{LAST_LAYER}.")}
    loaded = {key: value for key, value in loaded.items() if not str(key).startswith(f"{LAST_LAYER}.")}
    for key, value in own.items():
        if key not in loaded:
            raise StageError(f"{path}: {key} is missing; is this another network than {model.name}?")
        if not isinstance(loaded[key], torch.Tensor) or loaded[key].shape != value.shape:
            shape = tuple(getattr(loaded[key], "shape", ()))
            raise StageError(f"{path}: {key} has shape {shape}, but {model.name} requires {tuple(value.shape)}")
    if unknown := sorted(map(str, loaded.keys() - own.keys())):
        raise StageError(f"{path}: {model.name} has no {unknown[0]}; is this another network?")
    return loaded

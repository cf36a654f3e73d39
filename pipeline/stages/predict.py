"""predict: the ordered submission, its probabilities and its receipt."""

import numpy as np
import torch

from pipeline import artifacts, inference
from pipeline.models import load_weights
from pipeline.stages import submission
from pipeline.stages.engine import recipe_hash


def space(job):
    """Bytes that `run` writes at most: ten float32 a row, and a line of text."""
    return 48 * len(np.load(job.paths["prepare/test_images.npy"], mmap_mode="r"))


def run(job):
    images = np.load(job.paths["prepare/test_images.npy"])
    networks = load_weights(job.paths["train/weights.safetensors"], job.call.device)
    probabilities = inference.average(networks, torch.from_numpy(images), job.settings.predict, job.call.device)
    submission.leave(
        job,
        probabilities,
        artifacts.read_json(job.paths["evaluate/metrics.json"]),
        recipe_hash(job.call.recipe),
        job.key["inputs"]["train/weights.safetensors"],
    )
    return {"rows": len(images)}

"""The features that a frozen extractor computes of all images of a table, once, in `data/features/`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.machine.devices import is_out_of_memory
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.networks import make_network
from pipeline.nn.precision import choose_memory_format, inference_precision
from pipeline.nn.transfer import TransferNetwork, hash_weights
from pipeline.recipes.settings import Model
from pipeline.shapes import Float16, UInt8
from pipeline.training import imagenet
from pipeline.training.arrays import TrainingArrays, read_images, read_rows
from pipeline.training.extraction import extract_features
from pipeline.training.specs import NetworkSpec
from pipeline.workflow import code, publishing, schemas, store
from pipeline.workflow.context import StageContext
from pipeline.workflow.store import FORMAT

FEATURES = "data/features"  # below the workspace
FILE = "features.npy"
PART_ROWS = 256  # an interrupted extraction continues after the last complete part
PARTS = "parts.json"  # the SHA-256 of the parts
# The modules whose code determines features, in addition to those of the model.
CODE = ("pipeline.dataset.views", "pipeline.nn.inference", "pipeline.training.extraction")


def ensure_features(
    context: StageContext, network: TransferNetwork, model: Model, precision: str, table: str
) -> Float16[np.ndarray, "n ..."]:
    """The features of all rows of a table, mapped from their file; computes them if they are missing.

    network: on any device.
    precision: of the training; where the device has no instructions for it, features are computed in fp32.
    table: "train" or "test".
    """
    name = f"prepare/{table}_images.npy"
    key = {
        "format": FORMAT,
        "stage": "features",
        "settings": {"model": model.name, "side": model.side, "frozen": model.frozen, "view": model.view}
        | {"precision": precision},
        "inputs": {"images": context.hashes[name], "extractor": hash_weights(network.extractor)},
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    key["code"] = code.digest((*CODE, f"pipeline.nn.models.{model.name}"))
    folder = store.resolve(context.run.workspace / FEATURES / f"{model.name}-{digest}")
    publishing.restore(folder)
    if store.read_intact_manifest(publishing.staging_dir(folder), key):  # a run was killed just before
        publishing.publish(folder)
    is_forced = context.run.force and folder not in context.run.recomputed
    images = read_images(context.files, name)
    if is_forced or not store.read_intact_manifest(folder, key):
        _extract(context, folder, key, network, images, _feature_size(model))
    return store.read_array(folder / FILE, "float16", (len(images), *_feature_size(model)), "c")


def _feature_size(model: Model) -> tuple[int, ...]:
    """The shape of the features of an image."""
    with torch.device("meta"):
        extractor: torch.nn.Module = make_network(model).extractor  # type: ignore[assignment]
        return tuple(extractor(torch.zeros(1, 1, 28, 28)).shape[1:])


def _extract(
    context: StageContext,
    folder: Path,
    key: dict[str, Any],
    network: TransferNetwork,
    images: UInt8[np.ndarray, "n 28 28"],
    size: tuple[int, ...],
) -> None:
    """Compute features, whose size is known, in parts, and publish them as one file."""
    settings, device, start = key["settings"], context.run.device, time.monotonic()
    precision = inference_precision(settings["precision"], device)
    context.say(
        f"computing the features of {len(images):,} images at {settings['side']}x{settings['side']} with "
        f"{settings['model']}, once"
    )
    staging = publishing.staging_dir(folder)
    context.run.recomputed.add(folder)
    if context.run.force or store.read_json(staging / store.STARTED, schemas.Started) != key:
        publishing.create_staging_dir(folder)
        store.write_json(staging / store.STARTED, key)
    network.to(device, memory_format=choose_memory_format(device, precision))  # type: ignore[call-overload]
    hashes = store.read_json(staging / PARTS, dict[str, schemas.Sha256]) or {}
    starts = range(0, len(images), PART_ROWS)
    paths = [staging / f"part-{number:05}.npy" for number in range(len(starts))]
    with tqdm(total=len(images), desc="features", unit="image", disable=None) as progress:
        for first, path in zip(starts, paths, strict=True):
            rows = images[first : first + PART_ROWS]
            if not path.exists() or store.sha256(path) != hashes.get(path.name):
                tensor = torch.from_numpy(rows).to(device)
                try:
                    features = extract_features(network, tensor, settings["view"], device, precision)
                except FloatingPointError as error:
                    raise StageError(f"{settings['model']}: {error}") from None
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    raise StageError("the memory of the GPU is too small: try a smaller model.side") from None
                if path == paths[0]:
                    # The parts, and the file that they are joined in.
                    store.require_disk_space(folder.parent, 2 * features[0].nbytes * len(images), "features")
                store.write_array(path, features)
                store.write_json(staging / PARTS, hashes := hashes | {path.name: store.sha256(path)})
            progress.update(len(rows))

    def parts() -> Iterator[Float16[np.ndarray, "n ..."]]:
        for path in paths:
            yield store.read_array(path, "float16", (None, *size))

    store.write_array_chunks(staging / FILE, (len(images), *size), np.dtype(np.float16), parts())
    context.check_inputs()
    environment = context.environment | {"precision": precision, "seconds": round(time.monotonic() - start, 3)}
    store.write_manifest(staging, key, [FILE], {"rows": len(images), "size": list(size)}, environment)
    publishing.publish(folder)


def with_features(context: StageContext, spec: NetworkSpec, arrays: TrainingArrays) -> TrainingArrays:
    """The arrays of a network with a frozen extractor, with features in place of images."""
    weights_file = context.files.get(imagenet.input_name(spec.model))
    network = make_initial_network(spec.model, spec.train.seed, weights_file)
    assert isinstance(network, TransferNetwork)

    def load(table: str) -> Float16[np.ndarray, "n ..."]:
        return ensure_features(context, network, spec.model, spec.train.precision, table)

    features = load("train")
    images = {"images": features}
    if arrays.validation_images is not None:
        rows = read_rows(context.files, len(features))
        is_training_row = np.ones(len(features), bool)
        is_training_row[rows] = False
        images = {"images": features[is_training_row], "validation_images": features[rows]}
    if arrays.test_images is not None:
        images["test_images"] = load("test")
    return replace(arrays, **images)

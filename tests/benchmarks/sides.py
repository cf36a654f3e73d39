"""The measurements of the speed benchmark: each part by the published code and by the pipeline.

`python -m tests.benchmarks.sides TASK` measures one side of one part and prints {"value": ..., "peak": megabytes}.
Each function imports the modules of its own side only, so that a side does not pay for the imports of the other.
"""

import contextlib
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROWS = 42_000
TRAINING_ROWS = 31_500  # three quarters
VALIDATION_ROWS = 10_500
N_VARIANTS = 7  # of each training image, in `dropout_cnn`
PARTS = ("read", "cached", "augment", "memory", "train", "small_batches", "first_batch", "status")
FULL_EPOCHS = 150  # of dropout_cnn
MAX_MEASURED_SECONDS = 60  # on CUDA: of epochs of dropout_cnn, from which the time of FULL_EPOCHS is extrapolated
# The accuracy benchmark: a schedule that is short enough for a CPU.
ACCURACY = {"rows": 10_000, "validation_rows": 10_000, "epochs": 10, "batch_size": 256, "learning_rate": 0.001}


def read_published(task):
    from tests.benchmarks import published_data

    return _time(lambda: published_data.read(_csv(task)))


def read_ours(task):
    from pipeline.dataset import files, tables

    return _time(lambda: tables.read_train_table(files.TableFile(_csv(task))))


cached_published = read_published  # it has no cache


def cached_ours(task):
    import numpy as np

    # Memory-mapped, as in the stages, and every value is read; a stage also hashes the files, in 0.02 s.
    return _time(lambda: [np.load(path, mmap_mode="r").max() for path in _arrays(task)])


def augment_published(task):
    import numpy as np

    from tests.benchmarks import published_data

    images, labels = (np.load(path)[:TRAINING_ROWS] for path in _arrays(task))
    rows = images.reshape(len(images), -1).astype(np.float32)
    return _time(lambda: published_data.augment(rows, labels))


def augment_ours(task):
    """Into a file that is flushed to the disk, as in the stage."""
    import numpy as np

    from pipeline.dataset import transforms
    from pipeline.recipes import config
    from pipeline.workflow import store

    images = np.load(_arrays(task)[0])[:TRAINING_ROWS]
    variants = transforms.list_variants(config.load_recipe("dropout_cnn").augment)

    def write():
        chunks = itertools.chain.from_iterable(transforms.transform_images(images, variant) for variant in variants)
        shape = (len(images) * len(variants), 28, 28)
        store.write_array_chunks(Path(task["folder"]) / "augmented.npy", shape, np.dtype(np.uint8), chunks)

    return _time(write)


def memory_published(task):
    """Peak memory in megabytes when the training can begin."""
    from sklearn.model_selection import train_test_split

    from tests.benchmarks import published_data, published_training

    images, labels = published_data.read(_csv(task))
    images, validation_images, labels, validation_labels = train_test_split(
        images, labels, test_size=0.25, random_state=0
    )
    training = published_data.augment(images, labels)
    datasets = [
        published_training.to_dataset(*pair, "cpu") for pair in (training, (validation_images, validation_labels))
    ]
    assert len(datasets[0]) == N_VARIANTS * TRAINING_ROWS
    return {"value": _peak_memory()}


def memory_ours(task):
    """The same: the stages up to training, and every page of the arrays that training loads."""
    import numpy as np
    import torch

    data = _run_stages(task, ("download", "prepare", "augment"), "dropout_cnn") / "data"
    (path,) = data.glob("augmented/*/images.npy")
    images, labels = torch.from_numpy(np.load(path, mmap_mode="c")), np.load(path.with_name("labels.npy"))
    (rows,) = (np.load(path) for path in data.glob("prepared/splits/*/validation_rows.npy"))
    validation_images = np.load(data / "prepared/arrays/train_images.npy", mmap_mode="r")[rows]
    assert len(images) == len(labels) == N_VARIANTS * TRAINING_ROWS and len(validation_images) == VALIDATION_ROWS
    assert max(int(chunk.max()) for chunk in images.split(10_000)) == 255
    return {"value": _peak_memory()}


def train_published(task):
    """Images per second of dropout_cnn with batches of 4096, after a warm-up."""
    from tests.benchmarks import published_training

    if task["device"] == "cuda":
        return train_epochs_published(task)
    n_images = 4096 * (2 if task["quick"] else 4)
    training, validation = (published_training.to_dataset(*_random(n), task["device"]) for n in (n_images, 512))
    model, times = published_training.dropout_cnn().to(task["device"]), []
    published_training.train(model, training, validation, 1, 4096, lambda n: times.append(time.perf_counter()))
    return {"value": (n_images - 4096) / (times[-1] - times[0])}


def train_ours(task, **settings):
    """The same by the pipeline's training loop with the recipe's settings; the first epoch is a warm-up."""
    from pipeline.recipes import config

    if task["device"] == "cuda":
        return train_epochs_ours(task, **settings)
    n_images = 4096 * (3 if task["quick"] else 8)
    recipe = config.load_recipe("dropout_cnn")
    recipe = recipe.replace(train=recipe.train.replace(epochs=2, **settings))
    _, times, precision = _fit(task, recipe, _random(n_images), _random(512))
    return {"value": n_images / (times[1] - times[0]), "more": {"precision": precision}}


def train_epochs_published(task):
    """The same in whole epochs of the recipe's size with validation: 3, or fewer that take MAX_MEASURED_SECONDS."""
    from torch.utils.data import Subset

    from tests.benchmarks import published_training

    sizes = N_VARIANTS * TRAINING_ROWS, VALIDATION_ROWS
    training, validation = (published_training.to_dataset(*_random(n), task["device"]) for n in sizes)
    model = published_training.dropout_cnn().to(task["device"])
    warm_up = Subset(training, range(min(sizes[0], 3 * 4096)))
    published_training.train(model, warm_up, validation, 1, 4096)
    times = [time.perf_counter()]
    while len(times) <= (1 if task["quick"] else 3) and times[-1] - times[0] < MAX_MEASURED_SECONDS:
        published_training.train(model, training, validation, 1, 4096)  # its last operation waits for the device
        times.append(time.perf_counter())
    return _summarize_epochs(times)


def train_epochs_ours(task, **settings):
    """The same by the pipeline; at most FULL_EPOCHS, after one as a warm-up."""
    from pipeline.recipes import config

    recipe = config.load_recipe("dropout_cnn")
    recipe = recipe.replace(train=recipe.train.replace(epochs=11 if task["quick"] else 1 + FULL_EPOCHS, **settings))
    training, validation = _random(N_VARIANTS * TRAINING_ROWS), _random(VALIDATION_ROWS)
    _, times, precision = _fit(task, recipe, training, validation, MAX_MEASURED_SECONDS)
    return _summarize_epochs(times, precision=precision)


def _summarize_epochs(times, **more):
    """The result of a training. times: before the first measured epoch, and at the end of each."""
    n_epochs, seconds = len(times) - 1, times[-1] - times[0]
    more |= {"seconds_for_150_epochs": FULL_EPOCHS * seconds / n_epochs, "measured_epochs": n_epochs}
    more["is_extrapolated"] = n_epochs < FULL_EPOCHS
    return {"value": n_epochs * N_VARIANTS * TRAINING_ROWS / seconds, "more": more}


def small_batches_published(task):
    """Images per second of ladder/deeper with batches of 32 by a plain loop; the first quarter is a warm-up."""
    from tests.benchmarks import published_training

    n_images = 32 * (80 if task["quick"] else 400)
    training, validation = (published_training.to_dataset(*_random(n), task["device"]) for n in (n_images, 32))
    model, times = published_training.deeper_lenet().to(task["device"]), []
    published_training.train(model, training, validation, 1, 32, lambda n: times.append(time.perf_counter()), 0.0005)
    measured = times[len(times) // 4 - 1 :]
    return {"value": 32 * (len(measured) - 1) / (measured[-1] - measured[0])}


def small_batches_ours(task):
    """The same by the pipeline's training loop; the first epoch is a warm-up."""
    from pipeline.recipes import config

    n_images = 32 * (60 if task["quick"] else 300)
    recipe = config.load_recipe("ladder/deeper", ["train.epochs=2"])
    _, times, precision = _fit(task, recipe, _random(n_images), _random(32))
    return {"value": n_images / (times[1] - times[0]), "more": {"precision": precision}}


def recording_ours(task):
    """The time of an epoch with train.record relative to one without: the fastest of several of each, alternating."""
    from pipeline.recipes import config

    n_images, seconds = 2_000 if task["quick"] else 10_000, {"true": [], "false": []}
    data = _random(n_images), _random(32)
    for _ in range(2 if task["quick"] else 4):
        for record, measured in seconds.items():
            recipe = config.load_recipe(task["recipe"], ["train.epochs=4", f"train.record={record}"])
            _, times, _ = _fit(task, recipe, *data)
            # From the third epoch on: with train.hard_example_fraction, the first two use all rows.
            measured += [end - start for start, end in itertools.pairwise(times[1:])]
    return {"value": min(seconds["true"]) / min(seconds["false"])}


train_exact_published = train_published


def train_exact_ours(task):
    """On CUDA, with the same weights bit for bit in every run: the cost of train.deterministic."""
    return train_ours(task, deterministic=True)


def first_batch_ours(task):
    """Seconds from the start of a process to its first batch."""
    import run_pipeline  # noqa: F401 (imported in a run)
    from pipeline.recipes import config
    from pipeline.training import task as training_task  # noqa: F401

    recipe = config.load_recipe("quick", ["train.epochs=1"])
    _fit(task, recipe, _random(recipe.train.batch_size), _random(1))
    return {"value": time.time() - task["start"]}


def status_ours(task):
    """Seconds of `--status` in a workspace with results."""
    settings = ("--set", "train.epochs=1")
    workspace = _run_stages(task, ("all",), "quick", None, *settings, data=task["archive"])
    call = [sys.executable, "run_pipeline.py", "--status", "--workspace", str(workspace), *settings]
    return _time(lambda: subprocess.run(call, check=True, stdout=subprocess.DEVNULL))


def scaling_ours(task):
    """Seconds to prepare and augment, and to train `quick` for an epoch, with the first rows of the tables."""
    n_rows = task["rows"]
    raw = Path(task["folder"]) / f"rows{n_rows}" / "data" / "raw"
    raw.mkdir(parents=True)
    for name, n in (("train", n_rows), ("test", n_rows * 2 // 3), ("sample_submission", n_rows * 2 // 3)):
        with open(Path(task["folder"]) / f"{name}.csv", "rb") as source, open(raw / f"{name}.csv", "wb") as target:
            target.writelines(itertools.islice(source, n + 1))
    import pandas  # noqa: F401 (imported before the measurement, since its time is constant)
    import sklearn.model_selection  # noqa: F401
    import torch  # noqa: F401

    start = time.perf_counter()
    workspace = _run_stages(task, ("download", "prepare", "augment"), "dropout_cnn", raw.parent.parent, data="auto")
    prepared = time.perf_counter()
    _run_stages(task, ("augment",), "quick", workspace)
    before_training = time.perf_counter()
    _run_stages(task, ("train",), "quick", workspace, "--set", "train.epochs=1")
    return {"prepare": prepared - start, "train": time.perf_counter() - before_training}


def accuracy_published(task):
    """Validation accuracy of the published loop and network after the schedule in ACCURACY."""
    import torch

    from tests.benchmarks import published_training

    torch.manual_seed(task["seed"])
    training, validation = (published_training.to_dataset(*rows, task["device"]) for rows in _first_rows(task))
    model = published_training.dropout_cnn().to(task["device"])
    n_epochs, batch_size, learning_rate = (ACCURACY[name] for name in ("epochs", "batch_size", "learning_rate"))
    accuracies = published_training.train(
        model, training, validation, n_epochs, batch_size, learning_rate=learning_rate
    )
    return {"value": accuracies[-1]}


def accuracy_ours(task):
    """The same by the pipeline."""
    from pipeline.recipes import config

    changes = [f"train.{name}={ACCURACY[name]}" for name in ("epochs", "batch_size", "learning_rate")]
    recipe = config.load_recipe("dropout_cnn", [*changes, f"train.seed={task['seed']}"])
    history, _, _ = _fit(task, recipe, *_first_rows(task))
    return {"value": history[-1]["validation_accuracy"]}


def unpack_ours(task):
    """Write the files that the parts read: the CSVs, and the arrays that a first run leaves."""
    import numpy as np

    from pipeline.dataset import files, tables

    folder = Path(task["folder"])
    with zipfile.ZipFile(task["archive"]) as archive:
        archive.extractall(folder)
    images, labels = tables.read_train_table(files.TableFile(_csv(task)))
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return {"value": len(images)}


def _csv(task):
    return Path(task["folder"]) / "train.csv"


def _arrays(task):
    return tuple(Path(task["folder"]) / f"{name}.npy" for name in ("images", "labels"))


def _first_rows(task):
    """Images and labels of the first rows for training, and of the next rows for validation."""
    import numpy as np

    images, labels = (np.load(path) for path in _arrays(task))
    end = ACCURACY["rows"] + ACCURACY["validation_rows"]
    training, validation = slice(ACCURACY["rows"]), slice(ACCURACY["rows"], end)
    return (images[training], labels[training]), (images[validation], labels[validation])


def _random(n):
    """Random images and labels."""
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    return images, generator.integers(0, 10, n)


class _Enough(Exception):
    """Ends a training."""


def _fit(task, recipe, training, validation, max_seconds=math.inf):
    """Train the network of a recipe; returns its history, the time at the end of each epoch, and the precision.

    The training ends early with the epoch that ends `max_seconds` or more after the first.
    """
    import numpy as np
    import torch

    from pipeline.nn import trainer
    from pipeline.nn.initialization import make_initial_network
    from pipeline.nn.precision import choose_precision

    def on_device(images, labels):
        tensors = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
        return trainer.LabelledImages(*(tensor.to(task["device"]) for tensor in tensors))

    network = make_initial_network(recipe.model, recipe.train.seed, images=torch.from_numpy(training[0]))
    precision = choose_precision(recipe.train.precision, task["device"])
    options = trainer.FitOptions(recipe.train.replace(precision=precision), recipe.affine, task["device"])
    times, history = [], []

    def after_epoch(checkpoint):
        times.append(time.perf_counter())
        history[:] = checkpoint["history"]
        if times[-1] - times[0] >= max_seconds:
            raise _Enough

    with contextlib.suppress(_Enough):
        trainer.fit(network, on_device(*training), on_device(*validation), options, on_epoch=after_epoch)
    return history, times, precision


def _run_stages(task, stages, recipe, workspace=None, *options, data=None):
    """Run stages in this process through the command line's function; returns the workspace."""
    import run_pipeline

    workspace = workspace or Path(task["folder"]) / "workspace"
    common = ["--recipe", recipe, "--workspace", str(workspace), "--device", task["device"], *options]
    with contextlib.redirect_stdout(sys.stderr if os.environ.get("SPEED_DEBUG") else open(os.devnull, "w")):
        for stage in stages:
            source = ["--data", data or task["archive"]] if stage in ("download", "all") else []
            if run_pipeline.main(["--stage", stage, *common, *source]):
                raise SystemExit(f"--stage {stage} failed")
    return workspace


def _time(function):
    start = time.perf_counter()
    function()
    return {"value": time.perf_counter() - start}


def _peak_memory():
    """The largest memory of this process, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss includes the memory of the parent at the start of this process
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    result = globals()[f"{task['part']}_{task['side']}"](task)
    print(json.dumps({**result, "peak": _peak_memory()}))

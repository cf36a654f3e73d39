"""What the speed benchmark measures: each part as the published way does it, and as the pipeline does.

`python -m tests.benchmarks.sides TASK` runs one side of one part and prints {"value": ..., "peak": megabytes}.
"""

import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROWS = 42_000
TRAINING_ROWS = 31_500  # three quarters
PARTS = ("read", "cached", "augment", "memory", "train", "small_batches", "first_batch", "status")
LAST = 150  # epochs of dropout_cnn

# The modules of each side are imported in its functions, so that neither pays for the other's.


def read_published(task):
    from tests.benchmarks import published_data

    return _seconds(lambda: published_data.read(_csv(task)))


def read_ours(task):
    from pipeline import digits

    return _seconds(lambda: digits.read_train(digits.Table(_csv(task))))


cached_published = read_published  # it has no cache


def cached_ours(task):
    import numpy as np

    # Mapped, as by the stages, and every value looked at; a stage that runs also hashes the files, in 0.02 s.
    return _seconds(lambda: [np.load(path, mmap_mode="r").max() for path in _prepared(task)])


def augment_published(task):
    import numpy as np

    from tests.benchmarks import published_data

    images, labels = (np.load(path)[:TRAINING_ROWS] for path in _prepared(task))
    rows = images.reshape(len(images), -1).astype(np.float32)
    return _seconds(lambda: published_data.augment(rows, labels))


def augment_ours(task):
    """Into a file that is flushed to the disk, as the stage does."""
    import numpy as np

    from pipeline import artifacts, augmentation, recipe

    images = np.load(_prepared(task)[0])[:TRAINING_ROWS]
    settings = recipe.load("dropout_cnn").augment
    variants = augmentation.variants(settings)

    def write():
        pieces = itertools.chain.from_iterable(augmentation.batches(images, variant) for variant in variants)
        shape = (len(images) * len(variants), 28, 28)
        artifacts.write_array(Path(task["folder"]) / "augmented.npy", shape, np.uint8, pieces)

    return _seconds(write)


def memory_published(task):
    """The peak, in megabytes, until training could begin."""
    from sklearn.model_selection import train_test_split

    from tests.benchmarks import published_data, published_training

    images, labels = published_data.read(_csv(task))
    images, held, labels, held_labels = train_test_split(images, labels, test_size=0.25, random_state=0)
    images, labels = published_data.augment(images, labels)
    tensors = [published_training.on_device(*pair, "cpu") for pair in ((images, labels), (held, held_labels))]
    assert len(tensors[0]) == 7 * TRAINING_ROWS
    return {"value": _peak()}


def memory_ours(task):
    """The same: the stages up to training, and what training loads, every page of it looked at."""
    import numpy as np
    import torch

    data = _stages(task, "all-up-to-augment", "dropout_cnn") / "data"
    (path,) = data.glob("augmented/*/images.npy")
    images, labels = torch.from_numpy(np.load(path, mmap_mode="c")), np.load(path.with_name("labels.npy"))
    (rows,) = (np.load(path) for path in data.glob("prepared/splits/*/validation_rows.npy"))
    held = np.load(data / "prepared/arrays/train_images.npy", mmap_mode="r")[rows]
    assert (len(images), len(labels), len(held)) == (7 * TRAINING_ROWS, 7 * TRAINING_ROWS, 10_500)
    assert max(int(part.max()) for part in images.split(10_000)) == 255
    return {"value": _peak()}


def train_published(task):
    """Images a second at batch 4096 (on CUDA with validation, over whole epochs); the first batch warms up."""
    import torch

    from tests.benchmarks import published_training

    on_cuda = task["device"] == "cuda"
    count, epochs = (
        (7 * TRAINING_ROWS, 1 if task["quick"] else 3) if on_cuda else (4096 * (2 if task["quick"] else 4), 1)
    )
    train, held = (
        published_training.on_device(*_random(n), task["device"]) for n in (count, 10_500 if on_cuda else 512)
    )
    ticks = []
    model = published_training.network().to(task["device"])
    if on_cuda:
        published_training.epochs(model, train, held, 1, 4096)
        torch.cuda.synchronize()
        began = time.perf_counter()
        published_training.epochs(model, train, held, epochs, 4096)
        torch.cuda.synchronize()
        speed = epochs * count / (time.perf_counter() - began)
        return {"value": speed, "more": {"seconds_for_150_epochs": LAST * count / speed}}
    published_training.epochs(model, train, held, 1, 4096, lambda images: ticks.append(time.perf_counter()))
    return {"value": (count - 4096) / (ticks[-1] - ticks[0])}


def train_ours(task, **changes):
    """The same, by the pipeline's own loop with its own settings; the first epoch warms up."""
    import dataclasses

    from pipeline import recipe, training

    on_cuda = task["device"] == "cuda"
    count, epochs = 4096 * (3 if task["quick"] else 8), 2
    if on_cuda:
        count, epochs = 7 * TRAINING_ROWS, 11 if task["quick"] else 1 + LAST
    settings = recipe.load("dropout_cnn")
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=epochs, **changes))
    ticks = []
    _fit(settings, _random(count), _random(10_500 if on_cuda else 512), task["device"],
         lambda checkpoint: ticks.append(time.perf_counter()))  # fmt: skip
    speed = (epochs - 1) * count / (ticks[-1] - ticks[0])
    precision = training.choose_precision(settings.train, task["device"])
    more = {"precision": precision} | ({"seconds_for_150_epochs": LAST * count / speed} if on_cuda else {})
    return {"value": speed, "more": more}


def small_batches_published(task):
    """Images a second of ladder/deeper, batches of 32, by a plain loop; the first quarter warms up."""
    from tests.benchmarks import published_training

    count = 32 * (80 if task["quick"] else 400)
    train, held = (published_training.on_device(*_random(n), task["device"]) for n in (count, 32))
    model, ticks = published_training.deeper().to(task["device"]), []
    published_training.epochs(model, train, held, 1, 32, lambda images: ticks.append(time.perf_counter()), 0.0005)
    measured = ticks[len(ticks) // 4 - 1 :]
    return {"value": 32 * (len(measured) - 1) / (measured[-1] - measured[0])}


def small_batches_ours(task):
    """The same by the pipeline's own loop; the first epoch warms up."""
    from pipeline import recipe, training

    count, ticks = 32 * (60 if task["quick"] else 300), []
    settings = recipe.load("ladder/deeper", ["train.epochs=2"])
    _fit(settings, _random(count), _random(32), task["device"], lambda checkpoint: ticks.append(time.perf_counter()))
    precision = training.choose_precision(settings.train, task["device"])
    return {"value": count / (ticks[1] - ticks[0]), "more": {"precision": precision}}


def recording_ours(task):
    """How many times as long an epoch takes with train.record: the quickest of four of each kind, in turn."""
    from pipeline import recipe

    count, times = 2_000 if task["quick"] else 10_000, {"true": [], "false": []}
    data = _random(count), _random(32)
    for _ in range(2 if task["quick"] else 4):
        for record, found in times.items():
            ticks = []
            settings = recipe.load(task["recipe"], ["train.epochs=4", f"train.record={record}"])
            _fit(settings, *data, task["device"], lambda checkpoint, ticks=ticks: ticks.append(time.perf_counter()))
            found += [after - before for before, after in itertools.pairwise(ticks[1:])]  # alike, also with focus
    return {"value": min(times["true"]) / min(times["false"])}


train_exact_published = train_published


def train_exact_ours(task):
    """On CUDA, the same weights bit for bit each time: what that costs."""
    return train_ours(task, deterministic=True)


def first_batch_ours(task):
    """Seconds from the start of a process to its first batch."""
    import run_pipeline  # noqa: F401 (what a run imports)
    from pipeline import recipe
    from pipeline.stages import train  # noqa: F401

    settings = recipe.load("quick", ["train.epochs=1"])
    _fit(settings, _random(settings.train.batch), _random(1), task["device"], lambda checkpoint: None)
    return {"value": time.time() - task["began"]}


def status_ours(task):
    """Seconds of `--status` over a workspace with results."""
    words = ("--set", "train.epochs=1")
    workspace = _stages(task, "all", "quick", None, *words, data=task["archive"])
    call = [sys.executable, "run_pipeline.py", "--status", "--workspace", str(workspace), *words]
    return _seconds(lambda: subprocess.run(call, check=True, stdout=subprocess.DEVNULL))


def scaling_ours(task):
    """Seconds to prepare and augment, and to train `quick` for an epoch, with the first rows of the tables."""
    rows = task["rows"]
    raw = Path(task["folder"]) / f"rows{rows}" / "data" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", rows), ("test", rows * 2 // 3), ("sample_submission", rows * 2 // 3)):
        with open(Path(task["folder"]) / f"{name}.csv", "rb") as whole, open(raw / f"{name}.csv", "wb") as part:
            part.writelines(itertools.islice(whole, count + 1))
    import pandas  # noqa: F401 (not part of what grows)
    import sklearn.model_selection  # noqa: F401
    import torch  # noqa: F401

    began = time.perf_counter()
    workspace = _stages(task, "all-up-to-augment", "dropout_cnn", raw.parent.parent, data="auto")
    prepared = time.perf_counter()
    _stages(task, "augment", "quick", workspace)
    middle = time.perf_counter()
    _stages(task, "train", "quick", workspace, "--set", "train.epochs=1")
    return {"prepare": prepared - began, "train": time.perf_counter() - middle}


SHORT = {"rows": 10_000, "held": 10_000, "epochs": 10, "batch": 256, "learning_rate": 0.001}


def accuracy_published(task):
    """Validation accuracy after a schedule short enough for a CPU, by the published loop and network."""
    import torch

    from tests.benchmarks import published_training

    torch.manual_seed(task["seed"])
    train, held = (published_training.on_device(*pair, task["device"]) for pair in _real(task))
    model = published_training.network().to(task["device"])
    found = published_training.epochs(
        model, train, held, SHORT["epochs"], SHORT["batch"], learning_rate=SHORT["learning_rate"]
    )
    return {"value": found[-1]}


def accuracy_ours(task):
    """The same, by ours."""
    from pipeline import recipe

    changes = [f"train.{name}={SHORT[name]}" for name in ("epochs", "batch", "learning_rate")]
    settings = recipe.load("dropout_cnn", [*changes, f"train.seed={task['seed']}"])
    history = _fit(settings, *_real(task), task["device"], lambda checkpoint: None)
    return {"value": history[-1]["validation_accuracy"]}


def unpack_ours(task):
    """Lay out what the parts read: the CSVs, and the arrays that a first run would leave."""
    import numpy as np

    from pipeline import digits

    folder = Path(task["folder"])
    with zipfile.ZipFile(task["archive"]) as archive:
        archive.extractall(folder)
    images, labels = digits.read_train(digits.Table(_csv(task)))
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return {"value": len(images)}


def _csv(task):
    return Path(task["folder"]) / "train.csv"


def _prepared(task):
    return tuple(Path(task["folder"]) / f"{name}.npy" for name in ("images", "labels"))


def _real(task):
    """The first rows, and the ones after them for validation."""
    import numpy as np

    images, labels = (np.load(path) for path in _prepared(task))
    cut, end = SHORT["rows"], SHORT["rows"] + SHORT["held"]
    return (images[:cut], labels[:cut]), (images[cut:end], labels[cut:end])


def _random(count):
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, generator.integers(0, 10, count)


def _fit(settings, train, held, device, after_epoch):
    import numpy as np
    import torch

    from pipeline import training
    from pipeline.models import make

    def on_device(images, labels):
        return torch.from_numpy(images).to(device), torch.from_numpy(labels.astype(np.int64)).to(device)

    training.seed_everything(settings.train.seed)
    network = make(settings.model, torch.from_numpy(train[0]))
    precision = training.choose_precision(settings.train, device)
    parts = on_device(*train), on_device(*held)
    return training.fit(network, *parts, settings.train, settings.affine, device, precision, None, after_epoch)[1]


def _stages(task, stage, recipe, workspace=None, *words, data=None):
    """Run stages through the command line's own function, in this process."""
    import run_pipeline

    workspace = workspace or Path(task["folder"]) / "workspace"
    common = ["--recipe", recipe, "--workspace", str(workspace), "--device", task["device"], *words]
    with contextlib.redirect_stdout(sys.stderr if os.environ.get("SPEED_DEBUG") else open(os.devnull, "w")):
        for name in ("download", "prepare", "augment") if stage == "all-up-to-augment" else (stage,):
            source = ["--data", data or task["archive"]] if name in ("download", "all") else []
            if run_pipeline.main(["--stage", name, *common, *source]):
                raise SystemExit(f"--stage {name} failed")
    return workspace


def _seconds(function):
    began = time.perf_counter()
    function()
    return {"value": time.perf_counter() - began}


def _peak():
    """The most memory that this process held, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent held when it started us
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    told = globals()[f"{task['part']}_{task['side']}"](task)
    print(json.dumps({**told, "peak": _peak()}))

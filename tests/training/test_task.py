"""The training of one network in its folder: rows of each fold, checkpoints, and workers on other machines."""

import contextlib
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from pipeline.errors import StageError
from pipeline.nn import trainer as training_loop
from pipeline.recipes import config
from pipeline.training import task as training_task
from pipeline.training.arrays import TrainingArrays
from pipeline.training.pool import worker
from pipeline.training.specs import NetworkSpec
from pipeline.training.task import (
    CHECKPOINT,
    HISTORY,
    LOG,
    RECORD,
    WEIGHTS,
    TrainingTask,
    history_to_csv,
    read_history,
    resolve_precision,
    train_network,
)
from pipeline.workflow import store
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(100)
FOLDS = (np.arange(100) % 2).astype(np.uint8)
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: out of memory"),
)
ARRAYS = TrainingArrays(IMAGES, LABELS, folds=FOLDS).by_name()
SETTINGS = ["train.epochs=3", "train.batch_size=50", "model.name=layers", 'model.layers=["dense 20", "dropout"]']
RECIPE = config.load_recipe("quick", [*SETTINGS, "train.precision=fp32", "split.folds=2", "affine.rotation=10"])


def make_task(folder, started=None, train=RECIPE.train, parent=None, threads=1):
    """The task that trains in an existing folder, which is prepared for it unless `started` is None."""
    if started is not None:
        folder.mkdir(exist_ok=True)
        store.write_json(folder / store.STARTED, started)
    return TrainingTask(
        spec=NetworkSpec(RECIPE.model, train, RECIPE.affine, 1, threads, ()),
        device="cpu",
        staging_dir=str(folder),
        started=started or {"stage": "network"},
        parent=parent or os.getpid(),
        array_names=tuple(ARRAYS),
    )


def train(task, **options):
    return train_network(task, *ARRAYS.values(), **options)


def stop_after(epoch):
    """A callback that stops the training like Ctrl-C."""

    def on_epoch(history):
        if history[-1]["epoch"] == epoch:
            raise KeyboardInterrupt

    return on_epoch


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The outcome of an undisturbed training."""
    return train(make_task(tmp_path_factory.mktemp("expected") / "network.partial", {}))


def assert_equal(outcome, expected):
    assert {WEIGHTS, HISTORY, LOG} <= outcome.files.keys()
    for name in (WEIGHTS, HISTORY):
        assert outcome.files[name] == expected.files[name]
    assert outcome.history == expected.history and outcome.numbers == expected.numbers


def test_the_rows_of_a_fold_are_held_out_of_all_variants():
    """Offline augmentation: variants follow each other, and the rows that are held out are validated unchanged."""
    variants = [IMAGES, 255 - IMAGES, IMAGES // 2]
    arrays = TrainingArrays(np.concatenate(variants), np.tile(LABELS, 3), folds=FOLDS, test_images=IMAGES[:3])
    part = arrays.split(1)
    even = slice(0, None, 2)
    assert np.array_equal(part.images, np.concatenate([variant[even] for variant in variants]))
    assert np.array_equal(part.labels, np.tile(LABELS[even], 3))
    assert np.array_equal(part.validation_images, IMAGES[1::2])
    assert np.array_equal(part.validation_labels, LABELS[1::2])
    assert part.test_images is arrays.test_images
    whole = TrainingArrays(IMAGES, LABELS)
    assert whole.split(None) is whole


@pytest.mark.parametrize("save_interval", [0, 1000])
def test_a_training_that_is_stopped_continues(tmp_path, expected, monkeypatch, save_interval):
    """Also if the last epoch was too short to be saved at once."""
    monkeypatch.setattr("pipeline.training.task.MAX_SAVE_INTERVAL", save_interval)
    task = make_task(tmp_path / "network.partial", {"stage": "network"})
    with pytest.raises(KeyboardInterrupt):
        train(task, on_epoch=stop_after(2))
    messages = []
    outcome = train(task, log=messages.append)
    assert messages[0] == "continuing after epoch 2" and len(messages) == 2
    assert_equal(outcome, expected)
    log = outcome.files[LOG].decode()
    assert [log.count(f"epoch {number},") for number in (1, 2, 3)] == [1, 1, 1]


def test_a_checkpoint_of_other_settings_or_inputs_is_not_used(tmp_path, expected):
    """A worker that was given up may leave one at the last moment."""
    folder = tmp_path / "network.partial"
    with pytest.raises(KeyboardInterrupt):
        train(make_task(folder, {"inputs": {"a": "0" * 64}}), on_epoch=stop_after(2))
    (folder / LOG).unlink()
    outcome = train(make_task(folder, {"inputs": {"a": "1" * 64}}))
    assert_equal(outcome, expected)
    assert "continuing" not in outcome.files[LOG].decode()


@pytest.mark.parametrize("content", [b"garbage", b"\0" * 40, b""])
def test_a_damaged_checkpoint_is_an_error_that_names_the_file(tmp_path, content):
    task = make_task(tmp_path / "network.partial", {"stage": "network"})
    (tmp_path / "network.partial" / CHECKPOINT).write_bytes(content)
    with pytest.raises(StageError, match=r"network\.partial/checkpoint\.pt: the checkpoint cannot be read .*delete it"):
        train(task)


def test_a_worker_that_does_not_share_the_disk_gives_the_same(tmp_path, expected):
    """It finds nothing at the path of the folder, and creates nothing there."""
    task = make_task(tmp_path / "not" / "here")
    outcome = train(pickle.loads(pickle.dumps(task)))
    assert_equal(pickle.loads(pickle.dumps(outcome)), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_training_whose_parent_has_ended_stops_and_continues_later(tmp_path, expected, monkeypatch):
    folder = tmp_path / "network.partial"
    task = make_task(folder, {"stage": "network"}, parent=2**22 + 1)
    monkeypatch.setattr("pipeline.training.pool._end_with_parent", lambda parent: None)
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit):
        train(task)
    outcome = train(make_task(folder, {"stage": "network"}))
    assert "continuing after epoch 1" in outcome.files[LOG].decode()
    assert_equal(outcome, expected)


def test_a_training_that_diverges_returns_the_reason(tmp_path):
    settings = RECIPE.train.replace(optimizer="sgd", learning_rate=1e30, momentum=0.0)
    outcome = train(make_task(tmp_path / "network.partial", {}, settings))
    assert "smaller train.learning_rate" in outcome.error and not outcome.files


def test_observations_do_not_change_the_weights(tmp_path, expected):
    arrays = ARRAYS | {"test_images": IMAGES[:10], "test_labels": LABELS[:10]}
    task = make_task(tmp_path / "network.partial", {}, RECIPE.train.replace(record=True))
    task = TrainingTask(**{**vars(task), "array_names": tuple(arrays)})
    outcome = train_network(task, *arrays.values())
    assert outcome.files[WEIGHTS] == expected.files[WEIGHTS]
    assert RECORD in outcome.files and RECORD not in expected.files
    assert all(0 <= row["test_accuracy"] <= 1 for row in outcome.history)


def test_the_number_of_threads_is_restored(tmp_path):
    n_threads = torch.get_num_threads()
    task = make_task(tmp_path / "network.partial", {}, threads=n_threads + 1)

    def stop(history):
        raise KeyboardInterrupt(torch.get_num_threads())

    with pytest.raises(KeyboardInterrupt, match=str(n_threads + 1)):
        train(task, on_epoch=stop)
    assert torch.get_num_threads() == n_threads


def test_a_history_is_the_same_after_it_was_written(tmp_path):
    path, spec = tmp_path / "history.csv", make_task(tmp_path).spec
    history = [
        {
            "epoch": 1,
            "learning_rate": 0.1,
            "train_loss": 0.1 + 0.2,
            "validation_loss": 2.0,
            "validation_accuracy": 1 / 3,
        },
        {"epoch": 2, "learning_rate": 1.0, "train_loss": 1e-30},
        {"epoch": 3, "learning_rate": 0.0, "train_loss": 1.0, "validation_loss": 0.0, "validation_accuracy": 1.0},
    ]
    path.write_bytes(history_to_csv(history))
    assert read_history(path, spec) == history
    for damaged in (history[:2], history[1:], [*history[:2], history[1] | {"epoch": 3}], history[:2] * 2, []):
        path.write_bytes(history_to_csv(damaged))
        with pytest.raises(StageError, match=r"history\.csv is damaged"):
            read_history(path, spec)


class TestErrorsOfTheGpu:
    def test_the_first_error_is_reported(self, monkeypatch):
        """After an error of CUDA, every further call raises an error, too."""

        def fail():
            raise RuntimeError("CUDA error: second")

        monkeypatch.setattr(torch.cuda, "empty_cache", fail)
        with pytest.raises(RuntimeError, match="first"), worker(os.getpid(), "cuda", 1):
            raise RuntimeError("CUDA error: first")

    def test_the_last_checkpoint_stays(self, tmp_path, expected, monkeypatch):
        """The state is not saved after the error, since it would be read from the GPU."""
        monkeypatch.setattr("pipeline.training.task.MAX_SAVE_INTERVAL", 0)
        task = make_task(tmp_path / "network.partial", {"stage": "network"})
        train_epoch = training_loop.Trainer.train_epoch

        def fail_in_the_last_epoch(trainer, progress):
            if trainer.epoch == 2:
                trainer.network.load_state_dict = None  # unusable
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return train_epoch(trainer, progress)

        with monkeypatch.context() as patch:
            patch.setattr(training_loop.Trainer, "train_epoch", fail_in_the_last_epoch)
            with pytest.raises(RuntimeError, match="illegal memory access"):
                train(task)
        messages = []
        assert_equal(train(task, log=messages.append), expected)
        assert messages[0] == "continuing after epoch 2"

    @pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["PyTorch", "cuBLAS", "cuDNN", "CUDA"])
    def test_too_little_memory_is_explained(self, tmp_path, monkeypatch, error):
        def fail(*arguments):
            raise error

        monkeypatch.setattr("pipeline.training.classifier.fit", fail)
        with pytest.raises(StageError, match=r"memory of the GPU is too small: .*networks_per_gpu=1"):
            train(make_task(tmp_path / "network.partial", {"stage": "network"}))


def test_bf16_is_refused_on_a_gpu_that_does_not_compute_in_it(monkeypatch):
    """A P100 has no matrix products in bf16, not even emulated ones."""
    monkeypatch.setattr(training_task, "choose_device", lambda device: "cuda")
    monkeypatch.setattr(training_task, "usable_gpus", lambda: (0,))
    monkeypatch.setattr(torch.cuda, "device", lambda number: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    with pytest.raises(StageError, match="Tesla P100 does not support bf16"):
        resolve_precision("bf16", "auto")
    with pytest.raises(StageError, match="Tesla P100 does not support bf16"):
        resolve_precision("bf16", "auto", on_all_gpus=True)
    assert resolve_precision("fp32", "auto") == "fp32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert resolve_precision("bf16", "auto") == "bf16"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([(8, 0)], "bf16"), ([(8, 0), (7, 5)], "fp16"), ([(7, 5), (7, 5)], "fp16"), ([(9, 0), (6, 0), (7, 5)], "fp32")],
)
def test_different_gpus_train_in_a_precision_that_all_compute_fast(monkeypatch, capabilities, expected):
    @contextlib.contextmanager
    def select(number):
        selected.append(number)
        yield
        selected.pop()

    selected = []
    monkeypatch.setattr(training_task, "choose_device", lambda device: "cuda")
    monkeypatch.setattr(training_task, "usable_gpus", lambda: tuple(range(len(capabilities))))
    monkeypatch.setattr(torch.cuda, "device", select)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capabilities[selected[-1]])
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: capabilities[selected[-1]] >= (8, 0)
    )
    assert resolve_precision("auto", "auto", on_all_gpus=True) == expected
    first = "bf16" if capabilities[0] >= (8, 0) else "fp16"
    assert resolve_precision("auto", "auto") == first  # a single training is on the first GPU

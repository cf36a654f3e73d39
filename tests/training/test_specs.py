"""Network specs: what identifies a network, and what does not."""

import contextlib
import json
import tomllib

import pytest
import torch

from pipeline.errors import StageError
from pipeline.recipes import config
from pipeline.recipes.settings import Recipe
from pipeline.training import plan, task
from pipeline.training.pool import Pool
from pipeline.workflow import code
from tests.contexts import make_context
from tests.test_honest_numbers import CHANGED_VALUES

HASHES = {
    "augment/images.npy": "1",
    "augment/labels.npy": "2",
    "prepare/validation_rows.npy": "3",
    "prepare/folds.npy": "4",
    "prepare/train_images.npy": "5",
    "prepare/train_labels.npy": "6",
    "prepare/test_images.npy": "7",
}
CPU = Pool("local", "cpu", "cpu")


def resolve(recipe, hashes=HASHES, pool=CPU, **options):
    """The specs of a recipe, or of `quick` with assignments."""
    recipe = recipe if isinstance(recipe, Recipe) else config.load_recipe("quick", recipe)
    return plan.network_specs(recipe, make_context(recipe, hashes=hashes), pool, **options)


def folder_names(*arguments, **options):
    return [spec.folder_name for spec in resolve(*arguments, **options)]


def test_a_recipe_is_every_model_on_every_view_with_every_seed_and_fold():
    settings = ["split.folds=2", "ensemble.seeds=2", "train.seed=5"]
    settings += ['ensemble.models=["small_cnn", "medium_cnn"]', 'ensemble.views=["plain", "deskewed"]']
    expected = {
        f"{model}{view}-seed{seed}-fold{fold}"
        for model in ("small_cnn", "medium_cnn")
        for view in ("", "-deskewed")
        for seed in (5, 6)
        for fold in (0, 1)
    }
    specs = resolve(settings)
    assert len(specs) == 16 and {spec.name for spec in specs} == expected


def test_a_recipe_without_an_ensemble_is_one_network():
    assert [spec.name for spec in resolve([])] == ["small_cnn-seed0"]
    assert [spec.name for spec in resolve(['ensemble.models=["medium_cnn"]'])] == ["medium_cnn-seed0"]


@pytest.mark.parametrize("name", [name for name in CHANGED_VALUES if name.startswith(("affine.", "model.", "train."))])
def test_every_setting_of_the_training_identifies_the_network(monkeypatch, name):
    monkeypatch.setattr(task, "choose_precision", lambda precision, device: precision.replace("auto", "bf16"))
    section, _, field = name.partition(".")
    value = CHANGED_VALUES[name]
    with contextlib.suppress(tomllib.TOMLDecodeError):  # a bare word
        value = tomllib.loads(f"value = {value}")["value"]
    recipe = config.load_recipe("quick")
    changed = recipe.replace(**{section: getattr(recipe, section).replace(**{field: value})})
    assert folder_names(changed) != folder_names(recipe)


@pytest.mark.parametrize(
    "setting",
    [
        "train.record=true",
        "predict.shifts=[[1, 1]]",
        "split.seed=1",  # the split is identified by its content
        "split.fraction=0.3",
        "augment.angles=[5]",  # and so are the training images
        "compare.seeds=2",
    ],
)
def test_other_settings_do_not(setting):
    assert folder_names([setting]) == folder_names([])


@pytest.mark.parametrize(
    ("settings", "split_files"),
    [
        # The history, and the selected epoch, depend on the rows of train.csv that are held out.
        ([], ["prepare/validation_rows.npy", "prepare/train_images.npy", "prepare/train_labels.npy"]),
        (["split.folds=2"], ["prepare/folds.npy"]),
        (["train.fit_all=true"], []),
    ],
)
def test_data_and_split_identify_the_network_by_content(settings, split_files):
    for file in HASHES:
        is_used = file in ("augment/images.npy", "augment/labels.npy", *split_files)
        changed = folder_names(settings, HASHES | {file: "changed"})
        assert (changed != folder_names(settings)) == is_used, file


def test_seeds_folds_and_models_that_are_added_keep_the_other_networks():
    before = set(folder_names(["ensemble.seeds=2", "split.folds=2"]))
    more = ["ensemble.seeds=3", "split.folds=2", 'ensemble.models=["small_cnn", "medium_cnn"]']
    after = folder_names(more)
    assert len(before) == 4 and len(set(after)) == 12 and before < set(after)


def test_the_number_of_threads_identifies_the_network(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert [spec.threads for spec in resolve([])] == [5]
    assert [spec.threads for spec in resolve(["ensemble.seeds=2"])] == [1, 1]
    assert [spec.threads for spec in resolve([], parallel=True)] == [1]
    assert [spec.threads for spec in resolve(["ensemble.seeds=2", "ensemble.threads=3"])] == [3, 3]
    assert folder_names(["ensemble.threads=1"]) == folder_names(["ensemble.seeds=2"])[:1] != folder_names([])


def test_on_a_gpu_threads_do_not_matter(monkeypatch):
    monkeypatch.setattr(plan, "resolve_precision", lambda *arguments: "fp32")
    gpu = Pool("local", "cuda", "cuda")
    settings = ["train.precision=fp32"]
    assert resolve(settings, pool=gpu)[0].threads == 0
    threads = [folder_names([*settings, f"ensemble.threads={n}"], pool=gpu) for n in (1, 2)]
    assert threads[0] == threads[1] != folder_names([*settings, "ensemble.threads=1"])


def test_a_layer_without_reproducible_gradients_on_cuda_is_refused_in_deterministic_mode(monkeypatch):
    monkeypatch.setattr(plan, "resolve_precision", lambda *arguments: "fp32")
    settings = ["model.name=vgg16", "model.pretrained=none", "train.precision=fp32", "train.deterministic=true"]
    gpu, cpu = (Pool("local", device, device) for device in ("cuda", "cpu"))
    assert resolve([*settings, "model.frozen=nothing"], pool=cpu)
    with pytest.raises(StageError, match="pooling layer of vgg16"):
        resolve([*settings, "model.frozen=nothing"], pool=gpu)


def test_the_resolved_precision_identifies_the_network(monkeypatch):
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(task, "choose_precision", lambda *arguments, value=precision: value)
        assert resolve([])[0].train.precision == precision
        assert folder_names([]) == folder_names([f"train.precision={precision}"])


def test_each_repetition_of_a_comparison_has_seeds_of_its_own():
    settings = ["ensemble.seeds=2", "train.seed=5"]
    seeds = [spec.train.seed for number in range(3) for spec in resolve(settings, repetition=number)]
    assert seeds == [5, 6, 7, 8, 9, 10]


def test_the_manifest_records_every_setting_and_the_code_of_the_model():
    (spec,) = resolve([])
    key = spec.key()
    fields = {name for name in config.DEFAULTS if name.startswith(("affine.", "model.", "train."))}
    assert key["settings"].keys() == fields - config.OBSERVATIONAL | {"fold", "threads"}
    roots = ("pipeline.training.classifier", "pipeline.nn.models.small_cnn")
    assert key["code"] == code.digest(roots)
    files = code.modules(roots).keys()
    assert {"pipeline/nn/models/small_cnn.py", "pipeline/nn/trainer.py"} < files
    assert "pipeline/nn/models/medium_cnn.py" not in files
    assert json.loads(json.dumps(key)) == key

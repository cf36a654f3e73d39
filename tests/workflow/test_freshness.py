"""What is fresh, stale or missing, and why: after changes of settings, results, data, and the pipeline's own code."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from pipeline import ROOT
from pipeline.cli.workflows import JOINT, STAGES
from pipeline.recipes import config
from pipeline.recipes.settings import MODELS, Model
from pipeline.training import specs
from pipeline.workflow import code, engine, store
from pipeline.workflow.code import syntax_hash
from pipeline.workflow.stage import load_function
from tests.conftest import ALL_FRESH, NAMES, TINY, content, forge, ran


@pytest.fixture
def no_training(monkeypatch):
    """Make every training fail."""
    monkeypatch.setattr("pipeline.training.classifier.fit", None)


def test_everything_is_fresh_and_nothing_runs_again(status, stage, tiny, no_training):
    assert status() == ALL_FRESH
    folders = tiny / "data/runs", tiny / "data/networks", tiny / "submissions"
    before = content(*folders)
    run = stage("all")
    assert run.code == 0 and ran(run) == []
    assert content(*folders) == before


def test_status_of_an_empty_workspace(command, tmp_path):
    run = command("--status", "--workspace", tmp_path)
    assert run.code == 0 and "no recipe has runs yet" in run.out
    assert run.out.count("missing") == len(NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("assignment", "first", "reason"),
    [
        ("train.epochs=3", "train", "train.epochs 2 -> 3"),
        ("train.seed=1", "train", "train.seed 0 -> 1"),
        ("affine.rotation=3", "train", "affine.rotation 10.0 -> 3.0"),
        ("predict.shifts=[[1, 1]]", "evaluate", "predict.shifts [[0, 0]] -> [[1, 1]]"),
        ("prepare.allow_overlap=true", "prepare", "prepare.allow_overlap false -> true"),
    ],
)
def test_a_setting_makes_stale_the_stages_that_read_it_and_all_that_follow(look, _tiny, assignment, first, reason):
    states = look(_tiny, "--set", assignment)
    index = NAMES.index(first)
    assert [states[name][0] for name in NAMES] == ["fresh"] * index + ["stale"] * (len(NAMES) - index)
    assert states[first][1] == reason


def test_settings_that_no_result_depends_on_make_nothing_stale(look, _tiny):
    assert look(_tiny, "--set", "submit.message=hello", "--set", "submit.wait=false", "--device", "cpu") == ALL_FRESH
    assert look(_tiny, "--set", "train.record=true") == ALL_FRESH


def test_each_split_and_each_augmentation_has_its_own_folder(status, stage):
    assert status("--set", "split.seed=1")["prepare"][0] == "missing"
    assert status("--set", "augment.angles=[5]")["augment"][0] == "missing"
    stage("augment", "--set", "augment.angles=[5]")
    assert status()["augment"][0] == "fresh"
    assert status("--set", "augment.angles=[5]")["train"] == ("stale", "augment.angles [] -> [5.0]")


def test_results_of_an_earlier_version_are_stale_and_its_download_is_valid(status, stage, tiny):
    folders = [path.parent for path in tiny.rglob(store.MANIFEST)]
    for folder in folders:
        forge(folder, lambda manifest: manifest.pop("format"))
    reason = "made by another version of the pipeline"
    assert status() == {"download": ("fresh", "")} | dict.fromkeys(NAMES[1:], ("stale", reason))
    raw = content(tiny / "data/raw")
    run = stage("all")
    assert f"train: running, {reason}" in run.out and ran(run) == [*NAMES[1:]]
    assert content(tiny / "data/raw") == raw and status() == ALL_FRESH


FILES = {
    "data/runs/quick/train/weights.safetensors": "train",
    "data/runs/quick/evaluate/metrics.json": "evaluate",
    "submissions/quick/submission.csv": "predict",
    "data/prepared/arrays/train_images.npy": "prepare",
}


@pytest.mark.parametrize("harm", ["edit", "cut", "delete"])
def test_a_result_that_was_changed_by_hand_is_stale(status, stage, tiny, harm):
    """And is made again with the same content; of several changed results at once, each."""
    contents = {tiny / file: (tiny / file).read_bytes() for file in FILES}
    for (path, good), name in zip(contents.items(), FILES.values(), strict=True):
        changed = {"edit": good[:-1] + bytes([good[-1] ^ 1]), "cut": good[:-1]}
        path.unlink()
        if harm != "delete":
            path.write_bytes(changed[harm])
        reason = "was deleted" if harm == "delete" else "was changed after it was written"
        assert status()[name] == ("stale", f"{path.name} {reason}")
        path.write_bytes(good)
        assert status() == ALL_FRESH
    for path in contents:
        path.unlink()
        if harm != "delete":
            path.write_bytes(b"?")
    run = stage("all")
    assert run.code == 0 and ran(run) == ["prepare", "train", "evaluate", "predict"]
    assert {path: path.read_bytes() for path in contents} == contents
    assert status() == ALL_FRESH


@pytest.mark.parametrize(("file", "name"), [*FILES.items(), ("submissions/quick/submission.json", "predict")])
def test_only_the_changed_result_is_made_again(stage, tiny, no_training, file, name):
    """From the existing networks, and the stages after it stay fresh, since the content is the same."""
    (tiny / file).unlink()
    assert ran(stage("all")) == [name]


def test_the_receipt_may_change_but_not_be_damaged(status, stage, tiny):
    """`submit` writes the score into it."""
    receipt = tiny / "submissions/quick/submission.json"
    sent = {"sha256": "0" * 64, "message": "", "date": "2026-01-01 00:00:00+0000", "ref": 7, "score": 1}
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "sent": [sent]}))
    assert status() == ALL_FRESH
    receipt.write_text("{")
    assert status()["predict"] == ("stale", "submission.json was deleted or is damaged")
    assert ran(stage("all")) == ["predict"]


def test_a_result_with_a_damaged_manifest_is_missing(status, stage, tiny):
    (tiny / "data/runs/quick/train/manifest.json").write_text("{")
    assert status()["train"] == ("missing", "manifest.json is damaged")
    assert stage("all").code == 0
    assert status() == ALL_FRESH


@pytest.mark.parametrize("settings", [{"train": 5}, {"train.epochs": [[]]}])
def test_status_accepts_any_settings(status, tiny, settings):
    forge(tiny / "data/runs/quick/train", lambda manifest: manifest.update(settings=settings))
    assert status()["train"][0] == "stale"


def test_new_raw_data_make_everything_stale(status, stage, tiny, no_training):
    path = tiny / "data/raw/test.csv"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert {state for state, _ in status().values()} == {"stale"}
    assert ran(stage("all")) == ["download", "prepare", "predict"]  # the training data are the same


def test_a_published_result_in_previous_counts_and_is_restored(status, stage, tiny):
    folder = tiny / "data/runs/quick/train"
    store.write_list(folder, store.own_names(folder), store.STAGED)
    folder.rename(folder.with_name("train.previous"))
    assert status() == ALL_FRESH
    assert ran(stage("all")) == []
    assert (folder / "weights.safetensors").exists()


# Edits of the pipeline's code, in a copy of it


@pytest.fixture
def edited_copy(_tiny, tmp_path):
    """A function that edits a file in a copy of the pipeline, and returns the stale stages with their reasons."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "pipeline", copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_pipeline.py", copy)

    def stale(file=None, pattern="", replacement=""):
        if file:
            path = copy / "pipeline" / file
            text, count = re.subn(pattern, replacement, path.read_text(), count=1)
            assert count == 1, f"{pattern} does not occur in {file}"
            path.write_text(text)
        command = [sys.executable, "run_pipeline.py", "--status", *TINY, "--workspace", _tiny]
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        rows = [line.split(None, 2) for line in run.stdout.splitlines()[1:]]
        return {row[0]: row[2] for row in rows if row[1] != "fresh"}

    assert stale() == {}
    return stale


def test_an_edited_layer_makes_the_networks_of_this_model_stale(edited_copy):
    stale = edited_copy("nn/models/layers.py", r"nn\.Tanh\(\)", "nn.Sigmoid()")
    assert stale["train"] == "pipeline/nn/models/layers.py changed"
    assert list(stale) == ["train", "evaluate", "predict"]


def test_a_reformatted_or_commented_model_and_another_model_make_nothing_stale(edited_copy):
    assert edited_copy("nn/models/layers.py", r"super\(\).__init__\(\)", "super( ).__init__()  # first") == {}
    assert edited_copy("nn/models/layers.py", r'"""[^"]+"""', '"""Another docstring."""') == {}
    assert edited_copy("nn/models/medium_cnn.py", r"block\(1, 64", "block(1, 48") == {}


def test_an_edited_mean_of_predictions_makes_the_submission_stale(edited_copy):
    stale = edited_copy("training/predictions.py", r"np\.mean\(", "np.median(")
    assert stale["predict"] == "evaluate is stale" and "train" not in stale


def test_an_edited_module_of_the_training_makes_networks_stale(edited_copy):
    stale = edited_copy("nn/batches.py", r"FULL_EPOCHS = 2", "FULL_EPOCHS = 3")
    assert stale["train"] == "pipeline/nn/batches.py changed"


def test_a_new_setting_makes_nothing_stale_and_a_changed_default_does(edited_copy):
    new = "class Train(Section):\n    new_setting: float = 0.5\n"
    assert edited_copy("recipes/settings.py", r"class Train\(Section\):\n", new) == {}
    stale = edited_copy("recipes/settings.py", r"(swa_fraction: float = Field\(default=)0\.0", r"\g<1>0.25")
    assert stale["train"].startswith("train.swa_fraction 0.0 -> 0.25")


def test_a_new_setting_keeps_a_measured_accuracy(monkeypatch):
    recipe = config.load_recipe("quick")
    assert config.measured_difference(recipe) == ""
    settings = {**config.accuracy_settings(recipe), "train.new_setting": 0.5}
    monkeypatch.setattr(config, "accuracy_settings", lambda recipe: settings)
    monkeypatch.setitem(config.DEFAULTS, "train.new_setting", 0.5)
    assert config.measured_difference(recipe) == ""


# Edits of the pipeline's code, each in another module

# Module, pattern and replacement, and what becomes stale: the first stage of a finished run, or a kind of result.
EDITS = [
    ("training/classifier.py", r"labels\.astype\(np\.int64\)", "9 - labels.astype(np.int64)", "train"),
    ("training/arrays.py", r"rows = read_rows\((.*)\)", r"rows = read_rows(\1)[:9]", "augment"),
    ("nn/networks.py", r"scale_pixels\((.*), model\.pixels, images\)", r"\1", "train"),
    ("nn/pixels.py", r"/ 255", "/ 256", "train"),
    ("nn/models/layers.py", r"nn\.Tanh\(\)", "nn.Sigmoid()", "train"),
    ("nn/blocks.py", r"1 / \(1 - self\.p\)", "1", "train"),
    ("nn/initialization.py", r"seed_everything\(seed\)", "seed_everything(0)", "train"),
    ("nn/trainer.py", r"label_smoothing=label_smoothing", "label_smoothing=0", "train"),
    ("nn/optimizers.py", r"orthogonal = product @ wide", "orthogonal = wide", "train"),
    ("nn/precision.py", r'"bf16": torch\.bfloat16', '"bf16": torch.float16', "train"),
    ("nn/averaging.py", r"1 / self\.n_steps", "0.5", "train"),
    ("nn/batches.py", r"descending=True", "descending=False", "train"),
    ("nn/inference.py", r"div_\(255\)", "div_(256)", "train"),
    ("dataset/views.py", r"round\(\)", "floor()", "train"),
    ("dataset/affine.py", r"torch\.tan\(", "torch.sin(", "train"),
    ("training/specs.py", r"range\(recipe\.train\.seed,", "range(1 + recipe.train.seed,", "train"),
    ("training/plan.py", r"repetition \* recipe", "0 * recipe", "train"),
    ("stages/train.py", r'if name != "test_accuracy"', "", "train"),
    ("dataset/tables.py", r"np\.zeros\(len\(lines\), np", "np.ones(len(lines), np", "prepare"),
    ("dataset/files.py", r'TEST_LABELS = "test_labels', 'TEST_LABELS = "labels', "prepare"),
    ("dataset/splits.py", r"stratify=labels", "stratify=None", "prepare"),
    ("dataset/copies.py", r"is not None\]", "]", "prepare"),
    ("dataset/transforms.py", r"in settings\.angles", "in settings.angles[1:]", "augment"),
    ("training/held_out.py", r"np\.isin", "~np.isin", "evaluate"),
    ("training/predictions.py", r"np\.mean\(", "np.median(", "evaluate"),
    ("kaggle/competition.py", r"42_000", "60_000", "evaluate"),
    ("metrics/classification.py", r"binomtest", "binom", "evaluate"),
    ("metrics/calibration.py", r"softmax", "log_softmax", "evaluate"),
    ("stages/evaluate.py", r"np\.trace", "np.sum", "evaluate"),
    ("metrics/expected_score.py", r"math\.sqrt", "math.exp", "predict"),
    ("nn/pretrained.py", r"FACTS in", "FACTS not in", "predict"),
    ("dataset/submission.py", r"argmax\(1\)", "argmin(1)", "predict"),
    ("training/features.py", r"is_training_row\[rows\] = False", "is_training_row[rows] = True", "alexnet"),
    ("training/extraction.py", r"\.eval\(\)", ".train()", "alexnet"),
    ("nn/imagenet_weights.py", r"return loaded", "return {}", "alexnet"),
    ("nn/transfer.py", r'mode="bilinear"', 'mode="nearest"', "alexnet"),
    ("extras/generate/training.py", r"/ 127\.5 - 1", "/ 255", "gan"),
    ("extras/generate/generators.py", r"SLOPE = 0\.2", "SLOPE = 0.1", "gan"),
    ("extras/compare/statistics.py", r"ddof=1", "ddof=0", "compare"),
    ("extras/compare/table.py", r":\.4f", ":.3f", "compare"),
    ("extras/compare/stage.py", r"argmax\(1\) == self\.labels", "argmax(1) != self.labels", "compare"),
    ("extras/inspect/study.py", r"argmax", "argmin", "inspect"),
    ("extras/inspect/internals.py", r"probabilities\.argmax\(1\) ==", "probabilities.argmax(1) !=", "inspect"),
    ("metrics/embedding.py", r"random_state=0", "random_state=1", "explore"),
    ("metrics/dataset_statistics.py", r"\.mean\(", ".max(", "explore"),
    ("extras/generate/study.py", r"argmax", "argmin", "generate"),
    ("extras/generate/quality.py", r"distances\[:, -1\]", "distances[:, 0]", "generate"),
    ("extras/export/graph.py", r"\.mean\(0\)", ".sum(0)", "export"),
    ("extras/export/model_card.py", r":\.4f", ":.3f", "export"),
]
# Edits that change no result.
OTHER_EDITS = [
    ("training/task.py", r"continuing after epoch", "continuing after"),
    ("training/task.py", r"SAVE_SHARE = 0\.008", "SAVE_SHARE = 0.1"),
    ("training/pool.py", r"IDLE_TIMEOUT = 5", "IDLE_TIMEOUT = 6"),
    ("training/ensure.py", r"SCREEN_INTERVAL = 60", "SCREEN_INTERVAL = 61"),
    ("training/footprint.py", r"rows = min\(", "rows = max("),
    ("training/imagenet.py", r"TIMEOUT = 30", "TIMEOUT = 60"),
    ("nn/recorder.py", r"torch\.maximum", "torch.minimum"),
    ("nn/models/medium_cnn.py", r"block\(1, 64", "block(1, 48"),
    ("nn/models/vgg16.py", r"\(64, 64\)", "(64, 32)"),
    ("cli/main.py", r"finished work is kept", "what is finished is kept"),
    ("cli/summary.py", r"4 minutes", "5 minutes"),
    ("cli/status.py", r"no recipe has runs yet", "no recipe has runs"),
    ("reports/style.py", r"dpi=110", "dpi=50"),
    ("reports/training_figures.py", r"0\.72 \* n_digits", "0.8 * n_digits"),
    ("reports/page.py", r"max-width", "min-width"),
    ("workflow/engine.py", r": done in", ": took"),
    ("workflow/store.py", r"1 << 22", "1 << 20"),
    ("workflow/publishing.py", r"path\.rmdir\(\)", "pass"),
    ("kaggle/client.py", r"error.exit_code == 2", "error.exit_code == 3"),
    ("machine/environment.py", r"timeout=10", "timeout=5"),
    ("errors.py", r"explained = ", "is_explained = "),
    ("extras/compare/recipes.py", r"MAX_TITLE = 80", "MAX_TITLE = 90"),
    ("extras/inspect/figures.py", r"MAP_SIZE = 0\.29", "MAP_SIZE = 0.3"),
    ("extras/export/stage.py", r"model\.onnx", "network.onnx"),
]


def require_file(file):
    if not (ROOT / "pipeline" / file).exists():
        pytest.skip("this extra was deleted")


def code_of(kind):
    """The files of the code of a stage, of a network by its model, or of a GAN, and its digest."""
    quick, gan = config.load_recipe("quick"), config.load_recipe("gan/better")
    if kind == "gan":
        roots = ["pipeline.extras.generate.training"]
    elif kind in MODELS:
        roots = specs.training_code(quick.replace(model=Model(name=kind, frozen="features")))
    else:
        recipe = gan if kind == "generate" else config.load_recipe("quick", TINY[3::2])
        if kind not in STAGES | JOINT:
            pytest.skip("this extra was deleted")
        stage = (STAGES | JOINT)[kind]
        roots = [stage.run.partition(":")[0], *(load_function(stage.code)(recipe) if stage.code else ())]
    return code.digest(roots), code.modules(roots)


@pytest.mark.parametrize(("file", "pattern", "replacement", "stale"), EDITS, ids=[edit[0] for edit in EDITS])
def test_an_edit_makes_stale_what_it_changes(edit_code, look, _tiny, file, pattern, replacement, stale):
    require_file(file)
    digest, files = code_of(stale)
    edit_code(file, pattern, replacement)
    if stale in NAMES:
        states = look(_tiny)
        index = NAMES.index(stale)
        assert [states[name][0] for name in NAMES] == ["fresh"] * index + ["stale"] * (len(NAMES) - index)
        assert states[stale][1] == f"pipeline/{file} changed"
    digest_after, files_after = code_of(stale)
    assert digest_after != digest
    assert {name for name, hashes in files_after.items() if files[name] != hashes} == {f"pipeline/{file}"}


def test_the_edits_are_in_many_modules():
    assert len({file for file, *_ in EDITS}) == len(EDITS) >= 20
    on_demand = {stale for *_, stale in EDITS} - {*NAMES}
    assert on_demand == {"alexnet", "gan", "compare", "inspect", "explore", "generate", "export"}


@pytest.mark.parametrize(("file", "pattern", "replacement"), OTHER_EDITS)
def test_progress_checkpoints_and_other_models_make_nothing_stale(edit_code, look, _tiny, file, pattern, replacement):
    require_file(file)
    edit_code(file, pattern, replacement)
    assert look(_tiny) == ALL_FRESH


def test_code_that_only_chooses_the_networks_trains_none_again(edit_code, stage, tiny, no_training):
    edit_code("training/plan.py", r"len\(planned\) > 1", "len(planned) > 2")
    assert ran(stage("all")) == ["train"]


def test_the_hash_depends_on_the_syntax_tree_alone():
    code = "def f(x):\n    return x + 1\n"
    same = [
        '"""Docstring."""\ndef f(x: int) -> int:\n    """Another."""\n    # comment\n    return (x\n            + 1)\n',
        "def f(\n    x,\n):\n    return x + 1",
    ]
    different = ["def f(x):\n    return x + 2\n", "def f(x, y=1):\n    return x + 1\n", "def g(x):\n    return x + 1\n"]
    assert all(syntax_hash(text) == syntax_hash(code) for text in same)
    assert len({syntax_hash(text) for text in (code, *different)}) == 4
    # The same on every Python version: recorded with Python 3.11.
    assert syntax_hash(code) == "d093199db43588ef"
    assert syntax_hash('f"{x:<{y}} and {x!r}"') == "3ce1d3e44a5606b5"


def test_an_input_or_a_module_that_no_longer_exists_is_named():
    assert engine._first_difference({"a": "1", "b": "2"}, {"a": "1"}) == "b is no longer available"
    assert engine._first_difference({"a": "1"}, {"a": "1", "b": "2"}) == "b is new"
    assert engine._first_difference({"a": "1", "b": "2"}, {"a": "2", "b": "3"}) == "a changed"
    assert engine._first_difference({"a": "1"}, {"a": "1"}) == ""

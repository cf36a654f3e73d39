"""export: the ONNX graph against plain computations, the model card against the metrics, and what is left out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline import ROOT
from pipeline.dataset.views import apply_view
from pipeline.extras.export import graph as export
from pipeline.nn.inference import predict_probabilities
from pipeline.nn.networks import LoadedNetwork, make_network
from pipeline.recipes.settings import Model, Predict
from tests import oracles
from tests.conftest import ENSEMBLE, SHORT, digits_28

IMAGES, _ = digits_28(60)
SHIFTS = ((0, 0), (2, -1), (-3, 0))


def make_loaded(view="plain", seed=0, **model):
    torch.manual_seed(seed)
    settings = Model(**(model or {"name": "layers", "layers": ("conv 6 5x5 stride 2", "batch_norm", "relu")}))
    network = make_network(settings, torch.from_numpy(IMAGES))
    with torch.no_grad():  # batch norm statistics that are not those of an untrained network
        network.train()
        for _ in range(3):
            network(torch.from_numpy(IMAGES)[:, None] / 255)
    return LoadedNetwork(network.eval(), {"model": {"view": view}, "precision": "bf16"})


def run_graph(graph, images):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.fixture(scope="module")
def mixed_graph():
    """Three networks with two views and three shifts, and their graph."""
    networks = [make_loaded(seed=1), make_loaded("deskewed_even", seed=2), make_loaded(seed=3)]
    return networks, export.to_onnx(networks, Predict(shifts=SHIFTS))


@pytest.mark.slow
def test_views_shifts_and_the_mean_of_an_ensemble_are_in_the_graph(mixed_graph):
    networks, graph = mixed_graph
    expected = []
    for loaded in networks:
        images = apply_view(torch.from_numpy(IMAGES), loaded.metadata["model"]["view"]).numpy()
        expected.append(oracles.predict(loaded.network, images, SHIFTS))
    assert run_graph(graph, IMAGES) == pytest.approx(np.mean(expected, axis=0), abs=1e-4)
    assert not np.allclose(expected[0], expected[1], atol=1e-2)


@pytest.mark.slow
def test_the_graph_accepts_any_number_of_images(mixed_graph):
    _, graph = mixed_graph
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    (images,), (probabilities,) = model.graph.input, model.graph.output
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (images, probabilities)
    ]
    assert shapes == [["n", 28, 28], ["n", 10]] and (images.name, probabilities.name) == ("images", "probabilities")
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    together = run_graph(graph, IMAGES)
    for n in (1, 7):
        assert run_graph(graph, IMAGES[:n]) == pytest.approx(together[:n], abs=1e-5)


@pytest.mark.slow
def test_only_images_with_a_small_margin_are_shifted():
    loaded, predict = make_loaded(seed=1), Predict(shifts=SHIFTS, shift_margin=0.02)
    in_float32 = LoadedNetwork(loaded.network, {**loaded.metadata, "precision": "fp32"})
    probabilities = run_graph(export.to_onnx([loaded], predict), IMAGES)
    expected = predict_probabilities(in_float32, torch.from_numpy(IMAGES), predict, "cpu")
    assert probabilities == pytest.approx(expected, abs=1e-4)
    first, mean = (oracles.predict(loaded.network, IMAGES, shifts) for shifts in (SHIFTS[:1], SHIFTS))
    is_first, is_mean = (np.abs(probabilities - values).max(1) < 1e-5 for values in (first, mean))
    assert (is_first | is_mean).all() and 5 < is_first.sum() < 55


@pytest.mark.slow
def test_a_graph_that_differs_is_noticed(mixed_graph):
    networks, graph = mixed_graph
    images = torch.from_numpy(IMAGES)
    assert export.compare_graph(graph, networks, Predict(shifts=SHIFTS), images) < 1e-4
    assert export.compare_graph(graph, networks[:2], Predict(shifts=SHIFTS), images) > 1e-3
    assert export.compare_graph(graph, networks, Predict(), images) > 1e-3


def test_networks_that_the_page_cannot_run_are_refused():
    with pytest.raises(export.NotOnPage, match="through the view even"):
        export.to_page_network(make_loaded("even"))
    loaded = make_loaded()
    loaded.network.layers.append(torch.nn.Softmax(1))
    with pytest.raises(export.NotOnPage, match="has no layer Softmax"):
        export.to_page_network(loaded)


@pytest.fixture(scope="module")
def exported(_finished, tmp_path_factory):
    """The finished run of quick, exported."""
    import run_pipeline

    workspace = shutil.copytree(_finished, tmp_path_factory.mktemp("exported") / "workspace")
    assert run_pipeline.main(["--stage", "export", *SHORT, "--workspace", str(workspace), "--device", "cpu"]) == 0
    return workspace


def test_the_stage_writes_a_graph_a_card_and_a_page(exported):
    folder = exported / "data/runs/quick/export"
    images = np.load(exported / "data/prepared/arrays/test_images.npy")
    ((expected, _),) = oracles.predict_each(exported / "data/runs/quick/train/weights.safetensors", images)
    assert run_graph((folder / "model.onnx").read_bytes(), images) == pytest.approx(expected, abs=1e-4)
    page = (folder / "demo.html").read_text()
    assert "the network of the recipe quick" in page and "{{" not in page.replace("${{", "")
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page
    for name in ("errors.png", "confusion.png"):
        assert (folder / name).read_bytes() == (exported / "data/runs/quick/evaluate" / name).read_bytes()


def test_the_card_has_the_figures_of_the_evaluation(exported):
    card = (exported / "data/runs/quick/export/MODEL_CARD.md").read_text()
    metrics = json.loads((exported / "data/runs/quick/evaluate/metrics.json").read_text())
    low, high = metrics["interval_95"]
    assert f"{metrics['accuracy']:.4f} (95% interval {low:.4f} to {high:.4f})" in card
    for row in metrics["classes"]:
        assert f"| {row['digit']} | {row['rows']:,} | {row['precision']:.4f} | {row['recall']:.4f} |" in card
    assert "](errors.png)" in card and f"{metrics['rows'] - metrics['n_correct']:,} of the" in card
    assert "CC BY-SA 3.0" in card and f"| temperature | {metrics['temperature']:.3f}" in card


def test_the_graph_has_the_lowest_versions_and_no_trace_of_this_machine(exported):
    content = (exported / "data/runs/quick/export/model.onnx").read_bytes()
    model = onnx.load_from_string(content)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import) == 8
    for trace in (str(ROOT), str(exported), str(Path(sys.prefix)), ".py", "pipeline", "2.13", "site-packages"):
        assert trace.encode() not in content, trace


EXPORT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import pipeline, torch
from pipeline.extras.export import graph
from pipeline.nn.networks import LoadedNetwork, make_network
from pipeline.recipes.settings import Model, Predict
assert Path(pipeline.__file__).parent.parent == Path(sys.argv[1])
torch.manual_seed(0)
network = make_network(Model(name="layers", layers=("conv 4 5x5 stride 3", "batch_norm", "relu"))).eval()
loaded = [LoadedNetwork(network, {"model": {"view": view}}) for view in ("plain", "even")]
sys.stdout.buffer.write(graph.to_onnx(loaded, Predict(shifts=((0, 0), (1, -2)))))
"""


@pytest.mark.slow
def test_equal_networks_give_equal_bytes_in_every_folder(tmp_path):
    """In two processes with other hashes of texts, from two checkouts and two working folders."""
    copy = tmp_path / "another checkout"
    shutil.copytree(ROOT / "pipeline", copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    contents = []
    for seed, (checkout, folder) in enumerate(((ROOT, ROOT), (copy, tmp_path))):
        command = [sys.executable, "-c", EXPORT, str(checkout)]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
        contents.append(run.stdout)
    assert contents[0] == contents[1]
    onnx.checker.check_model(onnx.load_from_string(contents[0]), full_check=True)


@pytest.mark.slow
def test_the_oldest_onnxruntime_runs_the_graphs(mixed_graph, tmp_path):
    """`.ci/oldest` names an interpreter with the version that docs/recognition.md states."""
    python = os.environ.get("DIGIT_RECOGNIZER_ONNXRUNTIME_PYTHON")
    if not python:
        pytest.skip("DIGIT_RECOGNIZER_ONNXRUNTIME_PYTHON names no interpreter")
    networks, graph = mixed_graph
    graphs = {"mixed": graph, "plain": export.to_onnx(networks[:1], Predict())}
    np.save(tmp_path / "images.npy", IMAGES)
    for name, content in graphs.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        code = (
            "import numpy, onnxruntime\n"
            f"session = onnxruntime.InferenceSession('{name}.onnx', providers=['CPUExecutionProvider'])\n"
            f"numpy.save('{name}.npy', session.run(None, {{'images': numpy.load('images.npy')}})[0])\n"
            "print(onnxruntime.__version__)"
        )
        version = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        stated = re.search(r"onnxruntime (\d+\.\d+) or newer", (ROOT / "docs/recognition.md").read_text())
        assert version.startswith(f"{stated[1]}.")
        assert np.load(tmp_path / f"{name}.npy") == pytest.approx(run_graph(content, IMAGES), abs=1e-5)


@pytest.mark.slow
def test_without_held_out_rows_the_card_says_so(command, finished):
    """With the settings of SHORT, no pretrained network has figures either."""
    options = (*SHORT, "--set", "train.fit_all=true", "--workspace", finished, "--device", "cpu")
    assert command("--stage", "all", *options).code == 0
    run = command("--stage", "export", *options)
    assert run.code == 0, run.err
    folder = finished / "data/runs/quick/export"
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Not measured: trained on all rows" in card and "There is no picture of failures" in card
    assert "| temperature | not measured |" in card and not (folder / "errors.png").exists()
    assert "not calibrated" in (folder / "demo.html").read_text()


@pytest.mark.slow
def test_an_ensemble_is_one_graph_and_the_page_has_its_first_network(command, ensemble):
    options = (*ENSEMBLE, "--workspace", ensemble, "--device", "cpu")
    run = command("--stage", "export", *options)
    assert run.code == 0 and "demo.html runs the first of 4 networks in any browser" in run.out
    each = oracles.predict_each(ensemble / "data/runs/quick/train/weights.safetensors", IMAGES)
    graph = (ensemble / "data/runs/quick/export/model.onnx").read_bytes()
    assert run_graph(graph, IMAGES) == pytest.approx(np.mean([p for p, _ in each], axis=0), abs=1e-4)
    assert "the mean of 4 networks" in (ensemble / "data/runs/quick/export/MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_network_that_the_page_cannot_run_is_said_in_one_line(command, finished):
    options = (*SHORT, "--set", "model.view=deskewed", "--workspace", finished, "--device", "cpu")
    assert command("--stage", "all", *options).code == 0
    run = command("--stage", "export", *options)
    assert run.code == 0, run.err
    (line,) = (line for line in run.lines() if "demo.html" in line)
    assert run.code == 0 and line.startswith("export: no demo.html: the network sees images through the view deskewed")
    assert not (finished / "data/runs/quick/export/demo.html").exists()


def test_missing_packages_are_named(command, finished, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = command("--stage", "export", *SHORT, "--workspace", finished, "--device", "cpu")
    assert run.code == 2
    assert run.err == (
        "error: --stage export requires onnx, onnxscript, onnxruntime: pip install -r requirements/onnx.txt\n"
    )


def test_without_a_training_the_command_that_trains_is_named(command, tmp_path):
    run = command("--stage", "export", "--recipe", "quick", "--workspace", tmp_path, "--device", "cpu")
    assert run.code == 2 and "export requires" in run.err and "--stage all" in run.err

"""network_study: each measurement against the network itself."""

import numpy as np
import pytest
import torch

from pipeline.extras.inspect import internals
from pipeline.extras.inspect.study import NetworkStudy
from pipeline.metrics import embedding
from pipeline.nn import precision
from pipeline.nn.inference import as_input
from pipeline.nn.networks import LoadedNetwork, flatten_layers, make_network
from pipeline.nn.trainer import seed_everything
from pipeline.recipes.settings import Inspect
from tests.extras.inspect.studies import EPOCHS, FOLD, MODEL, SEED, make_study


@pytest.fixture(scope="module")
def made():
    return make_study()


@pytest.fixture(scope="module")
def untrained(made):
    seed_everything(SEED)
    return make_network(MODEL, torch.from_numpy(made.rows.images[made.rows.folds != FOLD])).eval()


def forward(network, images):
    """The inputs of the last layer and the logits of a plain forward pass."""
    inputs, last = [], flatten_layers(network)[-1]
    hook = last.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0].detach().numpy()))
    logits = network(as_input(images)).detach()
    hook.remove()
    return inputs[0], logits


def test_predictions_are_for_the_rows_of_the_held_out_fold(made):
    held_out = np.flatnonzero(made.rows.folds == FOLD)
    _, logits = forward(made.network, made.seen[held_out])
    assert np.allclose(made.study.probabilities, logits.softmax(1), atol=1e-6)
    assert np.array_equal(made.study.labels, made.rows.labels[held_out])
    numbers = made.study.numbers()
    assert numbers["rows"] == len(held_out) and numbers["rows_are"] == "validation rows"
    assert numbers["accuracy"] == np.mean(logits.argmax(1).numpy() == made.rows.labels[held_out]) > 0.5
    assert not numbers["chosen_on_these_rows"]
    assert made.progress == sorted(made.progress) and made.progress[-1] == 1


def test_embeddings_are_of_pixels_and_of_features_before_and_after_training(made, untrained, monkeypatch):
    spaces, fit_pca = [], embedding.fit_pca
    monkeypatch.setattr(embedding, "fit_pca", lambda values: spaces.append(values) or fit_pca(values))
    monkeypatch.setattr(embedding, "tsne", lambda points, seed, on_progress: points[:, :2])
    loaded = LoadedNetwork(made.network, made.metadata)
    study = NetworkStudy(loaded, made.rows, Inspect(rows=30), "cpu", [], lambda fraction: None)
    rows = np.flatnonzero(made.rows.folds == FOLD)[:30]
    expected = (
        made.rows.images[rows].reshape(30, -1) / np.float32(255),
        forward(untrained, made.seen[rows])[0],
        forward(made.network, made.seen[rows])[0],
    )
    for values, features, (name, result) in zip(spaces, expected, study.embeddings.items(), strict=True):
        assert np.allclose(values, features, atol=1e-4), name
        assert result.neighbour_accuracy == embedding.neighbour_accuracy(result.points, made.rows.labels[rows])
        assert result.silhouette == embedding.silhouette(result.points, made.rows.labels[rows])
    assert list(study.embeddings) == ["raw pixels", "untrained network", "trained network"]
    assert np.array_equal(study.embedded_labels, made.rows.labels[rows])


def test_cases_are_correct_predictions_and_errors_with_their_saliency(made):
    predictions = forward(made.network, made.seen)[1].argmax(1).numpy()
    held_out = np.flatnonzero(made.rows.folds == FOLD)
    correct = predictions == made.rows.labels
    cases = made.study.cases
    assert {case.label for _, case in cases["correct"]} == set(made.rows.labels[held_out[correct[held_out]]].tolist())
    assert len(cases["wrong"]) == min(10, np.sum(~correct[held_out])) > 0
    for name, group in cases.items():
        for row, case in group:
            index = row - 1
            assert index in held_out and np.array_equal(case.image, made.seen[index].numpy())
            assert (case.label, case.prediction) == (made.rows.labels[index], predictions[index])
            assert correct[index] == (name == "correct")
            digit = np.array([case.prediction])
            gradient = internals.input_gradients(made.network, made.seen[index : index + 1], digit)[0]
            assert np.allclose(case.input_gradient, gradient, rtol=1e-3, atol=1e-5)
            occlusion = internals.occlusion(made.network, made.seen[index], case.prediction)
            assert np.allclose(case.occlusion, occlusion, atol=1e-6)


def test_the_selected_image_passes_through_the_network_in_its_view(made):
    study = made.study
    assert study.image_row == 17 and study.image_label == made.rows.labels[16]
    assert np.array_equal(study.image, made.seen[16].numpy())
    assert study.image_is == ("validation rows" if made.rows.folds[16] == FOLD else "training rows")
    probabilities = forward(made.network, made.seen[16:17])[1].softmax(1)[0]
    assert np.allclose(study.image_probabilities, probabilities, atol=1e-6)
    assert np.allclose(study.numbers()["image"]["probabilities"], probabilities, atol=1e-6)
    assert study.layer_outputs[0][0] == "scaled pixels" and len(study.layer_outputs[-1][1]) == 10


def test_weights_are_those_before_and_after_training(made, untrained):
    pairs = [
        (before.detach().numpy(), after.detach().numpy())
        for before, after in zip(untrained.parameters(), made.network.parameters(), strict=True)
        if before.ndim > 1
    ]
    numbers = made.study.numbers()["weights"]
    for (description, before, after), (first, last) in zip(made.study.weights, pairs, strict=True):
        assert np.array_equal(before, first.ravel()) and np.array_equal(after, last.ravel())
        assert numbers[description]["std"] == pytest.approx(after.std())
        assert numbers[description]["std_untrained"] == pytest.approx(before.std())
    assert np.array_equal(made.study.last_layer, pairs[-1][1]) and np.array_equal(
        made.study.first_layer, pairs[0][1][:, 0]
    )


def test_weights_and_gradients_over_the_epochs_are_those_of_the_record(made):
    assert made.study.recorded_epochs == made.study.numbers()["recorded_epochs"] == list(range(EPOCHS + 1))
    for name, history in zip(made.record[0]["layers"], made.study.layer_histories, strict=True):
        layers = [row["layers"][name] for row in made.record]
        for layer, quantiles in zip(layers, history.quantiles, strict=True):
            counts, limit = np.array(layer["counts"]), layer["limit"]
            width = 2 * limit / len(counts)
            values = np.repeat(-limit + (np.arange(len(counts)) + 0.5) * width, counts)  # at the centres of the bins
            if len(values) > 1000:  # with fewer, neighbouring values are more than a bin apart
                assert np.abs(quantiles - np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99))).max() <= 1.01 * width
        assert history.gradient_means == [layer["gradient_mean"] for layer in layers[1:]]
        assert history.gradient_maxima == [layer["gradient_max"] for layer in layers[1:]]
        assert all(
            mean < largest for mean, largest in zip(history.gradient_means, history.gradient_maxima, strict=True)
        )


def test_without_held_out_rows_all_rows_are_predicted(made, monkeypatch):
    monkeypatch.setattr(embedding, "tsne", lambda points, seed, on_progress: points[:, :2])
    loaded = LoadedNetwork(made.network, made.metadata | {"fit_all": True, "checkpoint_selection": "best"})
    study = NetworkStudy(loaded, made.rows, Inspect(rows=20), "cpu", [], lambda fraction: None)
    numbers = study.numbers()
    assert numbers["rows"] == 200 and numbers["rows_are"] == "training rows (none was held out)"
    assert numbers["chosen_on_these_rows"] and "recorded_epochs" not in numbers and study.layer_histories == []


def test_a_network_trained_in_bf16_is_measured_in_the_precision_that_evaluate_uses(made, monkeypatch):
    monkeypatch.setattr(embedding, "tsne", lambda points, seed, on_progress: points[:, :2])
    monkeypatch.setattr(precision, "is_fast", lambda name, device: name == "fp32")  # a CPU without bf16
    loaded = LoadedNetwork(made.network, made.metadata | {"precision": "bf16"})
    study = NetworkStudy(loaded, made.rows, Inspect(rows=20), "cpu", [], lambda fraction: None)
    assert np.array_equal(study.probabilities, made.study.probabilities)

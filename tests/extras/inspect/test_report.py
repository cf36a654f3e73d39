"""network_report: the texts of the pictures and of the page, for what a recipe has and for what it lacks."""

from pipeline.extras.inspect import entry, figures, report
from pipeline.recipes.config import load_recipe
from pipeline.reports import page
from tests.extras.inspect.studies import make_study

NUMBERS = {"network": "", "rows": 100, "rows_are": "validation rows", "accuracy": 0.5, "chosen_on_these_rows": False}
NUMBERS |= {"weights": {"1: conv": {}, "2: dense 10": {}}, "calibration_error": 0.0123}
NUMBERS["tsne"] = {"rows": 60} | {
    name: {"neighbour_accuracy": accuracy} for name, accuracy in (("raw pixels", 0.8), ("trained network", 0.9))
}
EVALUATION = {
    "rows": 100,
    "accuracy": 0.99,
    "n_correct": 99,
    "interval_95": [0.95, 0.999],
    "chosen_on_these_rows": False,
}
EVALUATION["rests_on"] = "100 validation rows"
NETWORK = {"parameters": 135_530, "kept_epoch": 12, "precision": "bf16"}
TRAINING = {"numbers": {"networks": [NETWORK]}, "settings": {"train.epochs": 12}}


def render(pictures=(), **changes):
    recipe = load_recipe("quick")
    inputs = {"numbers": NUMBERS, "evaluation": EVALUATION, "training": TRAINING, "why_no_record": "not recorded"}
    inputs["about_data"] = "<p>no pictures of the data</p>"
    return report.render(recipe, dict.fromkeys(pictures, b"\x89PNG"), **inputs | changes).decode()


def test_the_page_shows_pictures_of_all_stages_in_order():
    groups = (
        entry.ERRORS,
        entry.CALIBRATION,
        entry.NETWORK,
        entry.TRAINING,
        entry.RECORDED,
    )
    names = [name for group in groups for name in group]
    html = render(reversed(names))
    positions = [html.index(f"<h3>{page.make_heading(name)}</h3>") for name in names]
    assert positions == sorted(positions) and html.count("<img") == len(names)
    for text in ("0.9900", "0.9500 to 0.9990", "1 of 100", "135,530", "bf16", "1.23%", "train.epochs", "not recorded"):
        assert (text in html) == (text != "not recorded"), text


def test_the_page_says_what_is_missing():
    html = render(evaluation={"rows": 0, "why_none": "trained on all rows"})
    assert "None: trained on all rows." in html and "not recorded" in html and "no pictures of the data" in html
    assert "<img" not in html and "95% interval" not in html


def test_the_page_of_an_ensemble_counts_its_networks():
    html = render(training=TRAINING | {"numbers": {"networks": [NETWORK, NETWORK]}})
    assert "<td>networks</td><td>2</td>" in html and "kept epoch" not in html


def test_an_accuracy_on_rows_that_chose_the_epoch_is_marked():
    chosen = {"chosen_on_these_rows": True}
    assert "slightly optimistic: the epoch was chosen on these rows" in render(evaluation=EVALUATION | chosen)
    assert "its epoch was chosen on these rows" in report.summarize(NUMBERS | chosen)[0]


def test_summary():
    assert report.summarize(NUMBERS) == [
        "Accuracy 50.00% on 100 validation rows, without shifted copies.",
        "In t-SNE of 60 rows, the nearest-neighbour accuracies are: raw pixels 80.0%, trained network 90.0%.",
    ]
    first, *_, last = report.summarize(
        NUMBERS | {"network": "2 of 2 (small_cnn)", "weights": {"1: dense 10": {}}, "recorded_epochs": [3, 4]}
    )
    assert first.startswith("Network 2 of 2 (small_cnn): accuracy 50.00% on 100 validation rows, alone and without")
    assert last.startswith("Recorded from epoch 3 on")
    assert any("has one layer" in sentence for sentence in report.summarize(NUMBERS | {"weights": {"1": {}}}))


def test_the_titles_of_pictures_contain_the_results(monkeypatch):
    arguments = {}
    for name in (*entry.NETWORK, *entry.RECORDED):
        function = {"weights_moving.gif": "weights_animated"}.get(name, name.removesuffix(".png"))
        monkeypatch.setattr(figures, function, lambda *given, name=name: arguments.update({name: given}) or b"")
    study = make_study().study
    assert list(report.draw(study)) == [*entry.NETWORK, *entry.RECORDED]
    for (title, points), (name, result) in zip(arguments["features.png"][0], study.embeddings.items(), strict=True):
        assert points is result.points and title.startswith(f"{name}\n")
        assert f"{result.neighbour_accuracy:.1%}" in title and f"silhouette {result.silhouette:.2f}" in title
    prediction = study.image_probabilities.argmax()
    *_, title = arguments["feature_maps.png"]
    assert (
        title == f"Row 17 of train.csv, one of the {study.image_is}: label {study.image_label}, prediction {prediction}"
    )
    monkeypatch.setattr(study, "layer_histories", [])
    assert list(report.draw(study)) == [*entry.NETWORK]
    epochs, layers = arguments["gradients.png"]
    assert epochs == study.recorded_epochs[1:] and len(layers[0].gradient_means) == len(epochs)

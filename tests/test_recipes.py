"""Recipes: every file loads and its network works, mistakes are named all at once, `--set`, `--list`."""

import dataclasses
import tomllib

import pytest
import torch

from pipeline import recipe
from pipeline.models import MODELS, make
from pipeline.settings import SECTIONS, Model, RecipeError
from pipeline.stages import engine


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_loads_and_maps_images_to_logits(name):
    loaded = recipe.load(name)
    assert loaded.name == name and loaded.about
    network = make(loaded.model).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_holds_only_what_differs_but_dropout_cnn_everything(name):
    table = tomllib.loads((recipe.RECIPES / f"{name}.toml").read_text())
    loaded = recipe.load(name)
    for section, kind in SECTIONS.items():
        given = table.get(section, {})
        if name == "dropout_cnn" and section != "estimate":
            assert set(given) == {field.name for field in dataclasses.fields(kind)}
        else:
            defaults = vars(kind())
            assert not [key for key in given if getattr(getattr(loaded, section), key) == defaults[key]]


def test_the_published_recipe():
    loaded = recipe.load("dropout_cnn")
    assert (loaded.train.epochs, loaded.train.batch, loaded.train.learning_rate) == (150, 4096, 0.0002)
    assert (loaded.train.optimizer, loaded.train.weight_decay, loaded.split.fraction) == ("adam", 0, 0.25)
    assert set(loaded.augment.shifts) == {(-1, 0), (1, 0), (0, -1), (0, 1)} and set(loaded.augment.angles) == {10, -10}


def test_published_differs_in_the_softmax_alone():
    one, two = (recipe.load(name) for name in ("dropout_cnn", "dropout_cnn_published"))
    differing = [
        f"{section}.{key}"
        for section in SECTIONS
        if section != "published"
        for key, value in vars(getattr(one, section)).items()
        if getattr(getattr(two, section), key) != value
    ]
    assert differing == ["train.softmax_before_loss"]


@pytest.mark.parametrize("name", recipe.names())
def test_a_recorded_estimate_is_of_the_recipes_own_settings(name):
    loaded = recipe.load(name)
    assert bool(loaded.estimate.seeds) == (name in ("quick", "standard", "best"))
    if loaded.estimate.seeds:
        assert loaded.estimate.settings == engine.accuracy_hash(loaded)


def test_list_shows_each_recipe_with_a_line(command):
    run = command("--list")
    assert run.code == 0
    assert [line.split("  ")[0] for line in run.lines()] == recipe.names()
    assert all(line.split("  ", 1)[1].strip() for line in run.lines())


@pytest.fixture
def file(tmp_path):
    def write(text, name="mine.toml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_file_of_ones_own(file):
    loaded = recipe.load(file('about = "mine"\n[train]\nepochs = 3\nlearning_rate = 1\n'))
    assert (loaded.name, loaded.about, loaded.train.epochs) == ("mine", "mine", 3)
    assert loaded.train.learning_rate == 1.0 and type(loaded.train.learning_rate) is float
    assert loaded.file.endswith("mine.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nepoch = 3", ["unknown setting train.epoch (nearest: epochs)"]),
        ("[trian]\nepochs = 3", ["unknown section [trian] (nearest: train)"]),
        ("epochs = 3", ["unknown section [epochs]"]),
        ("train = 3", ["train is a section"]),
        ("about = 3", ["about is not a text"]),
        ('[train]\nepochs = "3"', ["train.epochs is '3', expected a whole number"]),
        ("[train]\nepochs = 3.5", ["train.epochs is 3.5, expected a whole number"]),
        ("[train]\nepochs = true", ["train.epochs is True, expected a whole number"]),
        ("[train]\nepochs = 0", ["train.epochs is 0, expected at least 1"]),
        ("[train]\nlearning_rate = 0", ["train.learning_rate is 0, expected more than 0"]),
        ("[train]\nlearning_rate = nan", ["expected a finite number"]),
        ("[split]\nfraction = 1.0", ["split.fraction is 1.0, expected less than 1"]),
        ('[train]\noptimizer = "adamm"', ["expected one of adam, adamw"]),
        ("[train]\nsoftmax_before_loss = 1", ["expected true or false"]),
        ("[augment]\nshifts = [1, 0]", ["augment.shifts is [1, 0], expected a list"]),
        ("[augment]\nshifts = [[1, 0, 0]]", ["expected lists of 2 numbers"]),
        ("[augment]\nangles = [1000]", ["expected at most 360"]),
        ("[predict]\nshifts = []", ["expected a list that is not empty"]),
        ("[predict]\nshifts = [[0.5, 0]]", ["expected a whole number"]),
        ("[train]\nepochs = 0\nbatch = 0\n[model]\nsize = 1", ["train.epochs", "train.batch", "model.size"]),
        ("[train\n", ["not a TOML file"]),
        ("\0", ["not a TOML file"]),
    ],
)
def test_mistakes_are_named_all_at_once(file, text, words):
    with pytest.raises(RecipeError) as error:
        recipe.load(file(text))
    assert "\n" not in str(error.value) and "mine.toml" in str(error.value)
    for one in words:
        assert one in str(error.value)


def test_networks_are_those_of_models(command, tmp_path):
    (name,) = (field for field in dataclasses.fields(Model) if field.name == "name")
    assert name.metadata["choices"] == tuple(MODELS)
    run = command("--stage", "all", "--recipe", "quick", "--set", "model.name=smal_cnn", "--workspace", tmp_path)
    assert run.code == 2 and run.err.count("\n") == 1 and "small_cnn" in run.err


def test_set():
    loaded = recipe.load(
        "quick", ["train.epochs=3", "augment.shifts=[[1, 2]]", "train.schedule=cosine", "submit.message=12"]
    )
    assert (loaded.train.epochs, loaded.augment.shifts, loaded.train.schedule) == (3, ((1.0, 2.0),), "cosine")
    assert loaded.submit.message == "12"
    for wrong in ("train.epochs", "epochs=3", "train.epochs=x", "trian.epochs=3"):
        with pytest.raises(RecipeError, match="--set"):
            recipe.load("quick", [wrong])


def test_names(file):
    with pytest.raises(RecipeError, match=r"no recipe 'quik' \(nearest: quick\)"):
        recipe.load("quik")
    with pytest.raises(RecipeError, match="name of a built-in recipe"):
        recipe.load(file("", "quick.toml"))
    with pytest.raises(RecipeError, match="of their folder"):  # or it would replace their submissions
        recipe.load(file("", "keras.toml"))
    with pytest.raises(RecipeError, match="there is no such file"):
        recipe.load("nowhere.toml")


@pytest.mark.parametrize("name", ["quick.previous.toml", "a b.toml", ".toml", "-x.toml"])
def test_names_that_would_clash_with_folders_are_refused(file, name):
    with pytest.raises(RecipeError, match="rename the file"):
        recipe.load(file("", name))


def test_a_recipe_may_not_leave_its_folder():
    with pytest.raises(RecipeError, match="there is no recipe"):
        recipe.load("../../pyproject")

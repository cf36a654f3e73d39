"""Recipes and settings: loading, validation, `--set` and `--list`."""

import pickle
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from pipeline.cli import workflows
from pipeline.nn.networks import make_network
from pipeline.recipes import config
from pipeline.recipes.config import OBSERVATIONAL, ConfigError
from pipeline.recipes.rules import find_unused
from pipeline.recipes.settings import SECTIONS, TRANSFER_MODELS, ModelName, Train

FIELDS = {f"{section}.{field}" for section, kind in SECTIONS.items() for field in kind.model_fields}


@pytest.fixture
def recipe_file(tmp_path):
    """Write a recipe file; returns its path."""

    def write(text, name="mine.toml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


class TestBuiltInRecipes:
    @pytest.mark.parametrize("name", config.recipe_names())
    def test_loads_and_maps_images_to_logits(self, name):
        recipe = config.load_recipe(name)
        assert recipe.name == name and recipe.about and not recipe.file
        device = "meta" if recipe.model.name in TRANSFER_MODELS else "cpu"  # VGG16 has 134 million weights
        with torch.no_grad(), torch.device(device):
            network = make_network(recipe.model).eval()
            assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)

    @pytest.mark.parametrize("name", config.recipe_names())
    def test_contains_only_what_differs_from_the_defaults(self, name):
        """dropout_cnn contains every setting, so that no changed default can change it."""
        table = tomllib.loads((config.RECIPES / f"{name}.toml").read_text())
        recipe = config.load_recipe(name)
        for section, kind in SECTIONS.items():
            if name == "dropout_cnn" and section not in ("gan", "generate"):
                assert set(table[section]) == set(kind.model_fields)
            else:
                for field in table.get(section, {}):
                    assert getattr(getattr(recipe, section), field) != getattr(kind(), field), f"{section}.{field}"

    @pytest.mark.parametrize("name", config.recipe_names())
    def test_has_a_baseline_that_exists(self, name):
        baseline = config.load_recipe(name).baseline
        assert not baseline or baseline in config.recipe_names()

    def test_dropout_cnn_is_the_published_recipe(self):
        recipe = config.load_recipe("dropout_cnn")
        assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.learning_rate) == (150, 4096, 0.0002)
        assert (recipe.train.optimizer, recipe.train.weight_decay, recipe.split.fraction) == ("adam", 0, 0.25)
        assert set(recipe.augment.shifts) == {(-1, 0), (1, 0), (0, -1), (0, 1)}
        assert set(recipe.augment.angles) == {10, -10}

    def test_dropout_cnn_published_differs_in_the_softmax_alone(self):
        sections = [section for section in SECTIONS if section != "published"]
        ours, published = (
            config.flatten(config.load_recipe(name), sections) for name in ("dropout_cnn", "dropout_cnn_published")
        )
        assert config.changed_settings(ours, published) == ["train.softmax_before_loss false -> true"]

    def test_list_shows_each_recipe_with_a_description(self, command):
        run = command("--list")
        assert run.code == 0
        assert [line.split("  ")[0] for line in run.lines()] == list(config.recipe_names())
        assert all(line.split("  ", 1)[1].strip() for line in run.lines())

    def test_folders_are_expanded_in_order(self):
        ladder = config.recipes_in("ladder")
        assert [config.load_recipe(name).order for name in ladder] == list(range(1, len(ladder) + 1))
        expanded = ["quick", *ladder, str(Path("mine.toml").absolute())]
        assert workflows.expand(workflows.split("quick,ladder,ladder/lenet,mine.toml")) == expanded
        assert config.recipes_in("quick") == config.recipes_in("nothing") == []


class TestRecipeFiles:
    def test_settings_and_name_come_from_the_file(self, recipe_file):
        recipe = config.load_recipe(recipe_file('about = "my own"\n[train]\nepochs = 3\nlearning_rate = 1\n'))
        assert (recipe.name, recipe.about, recipe.train.epochs) == ("mine", "my own", 3)
        assert type(recipe.train.learning_rate) is float
        assert recipe.train.replace(epochs=150, learning_rate=0.0002) == Train()
        assert recipe.file.endswith("mine.toml")

    @pytest.mark.parametrize(
        ("text", "messages"),
        [
            ("[train]\nepoch = 3", ["unknown setting train.epoch (nearest: train.epochs)"]),
            ("[trian]\nepochs = 3", ["unknown section [trian] (nearest: train)"]),
            ("epochs = 3", ["unknown section [epochs]"]),
            ('name = "x"', ["unknown section [name]"]),
            ("train = 3", ["train is 3, expected a section"]),
            ("about = 3", ["about is 3, expected a string"]),
            ("order = true", ["order is True, expected a whole number"]),
            ('[train]\nepochs = "3"', ["train.epochs is '3', expected a whole number"]),
            ("[train]\nepochs = 3.5", ["train.epochs is 3.5, expected a whole number"]),
            ("[train]\nepochs = true", ["train.epochs is True, expected a whole number"]),
            ("[train]\nepochs = 0", ["train.epochs is 0, expected at least 1"]),
            ("[train]\nlearning_rate = 0", ["train.learning_rate is 0, expected more than 0"]),
            ("[train]\nlearning_rate = true", ["train.learning_rate is True, expected a finite number"]),
            ("[train]\nlearning_rate = nan", ["expected a finite number"]),
            (f"[train]\nlearning_rate = 1{'0' * 400}", ["expected a finite number"]),
            ("[split]\nfraction = 1.0", ["split.fraction is 1.0, expected less than 1"]),
            ("[split]\nseed = 4294967296", ["split.seed is 4294967296, expected at most 4294967295"]),
            ('[train]\noptimizer = "adamm"', ["expected one of 'adam', 'adamw'"]),
            ("[train]\nsoftmax_before_loss = 1", ["expected true or false"]),
            ("[submit]\nmessage = 1979-05-27", ["expected a string"]),
            ("[augment]\nshifts = [1, 0]", ["augment.shifts is [1, 0], expected a list"]),
            ("[augment]\nshifts = [[1, 0, 0]]", ["expected lists of 2 numbers"]),
            ("[augment]\nshifts = [[1]]", ["expected lists of 2 numbers"]),
            ("[augment]\nangles = [1000]", ["expected at most 360"]),
            ("[augment]\nzooms = [0]", ["expected at least 0.1"]),
            ("[predict]\nshifts = []", ["expected a list that is not empty"]),
            ("[predict]\nshifts = [[0.5, 0]]", ["expected a whole number"]),
            ('[model]\nname = "layers"\nlayers = ["conv 3"]', ['expected a layer such as "conv 32 3x3"']),
            ("[train\n", ["not a TOML file"]),
            ("\0", ["not a TOML file"]),
            (f"order = 1{'0' * 5000}", ["an integer has more than"]),
            (f"[train]\nseed = 0x1{'0' * 5000}", ["an integer has more than"]),
        ],
    )
    def test_a_mistake_is_named_with_value_and_expectation(self, recipe_file, text, messages):
        with pytest.raises(ConfigError) as error:
            config.load_recipe(recipe_file(text))
        assert "\n" not in str(error.value) and "mine.toml: " in str(error.value)
        for message in messages:
            assert message in str(error.value)

    def test_all_mistakes_are_named_at_once(self, recipe_file):
        text = (
            "about = 1\n[train]\nepochs = 0\nbatch = 0\nwarmup = 2\n[model]\nsize = 1\n[augment]\nangles = [-999, 999]"
        )
        with pytest.raises(ConfigError) as error:
            config.load_recipe(recipe_file(text), ["train.epochs=x", "trian.epochs=3", "split.folds=1", "epochs"])
        assert set(str(error.value).split("; ")) == {
            "mine.toml: about is 1, expected a string",
            "mine.toml: train.epochs is 0, expected at least 1",
            "mine.toml: unknown setting train.batch (nearest: train.batch_size)",
            "mine.toml: train.warmup is 2, expected less than 1",
            "mine.toml: unknown setting model.size (nearest: model.side)",
            "mine.toml: augment.angles is [-999, 999], expected at least -360",
            "--set: train.epochs is 'x', expected a whole number",
            "--set: unknown section [trian] (nearest: train)",
            "--set epochs: expected section.field=value (nearest: train.epochs, gan.epochs)",
            "mine.toml with --set: split.folds is 1, which leaves no rows to train on: set it to 2 or more, "
            "or to 0 for a single split",
        }

    def test_a_name_with_control_characters_is_printed_escaped(self, recipe_file, command):
        run = command("--status", "--recipe", recipe_file('"\\u001b[31m" = 3\n[train]\n"\\u001b[31m" = 3'))
        assert run.code == 2 and run.err[:-1].isprintable() and run.err.count("\\x1b[31m") == 2

    def test_unknown_recipes_and_reserved_names_are_refused(self, recipe_file):
        with pytest.raises(ConfigError, match=r"unknown recipe 'quik' \(nearest: quick\)"):
            config.load_recipe("quik")
        with pytest.raises(ConfigError, match="unknown recipe"):  # a recipe outside of the folder of recipes
            config.load_recipe("../../pyproject")
        with pytest.raises(ConfigError, match=r"nowhere\.toml: the file does not exist"):
            config.load_recipe("nowhere.toml")
        for name in ("quick", "keras"):  # it would replace their submissions
            with pytest.raises(ConfigError, match=f"{name} is a built-in recipe or a folder"):
                config.load_recipe(recipe_file("", f"{name}.toml"))

    @pytest.mark.parametrize("name", ["quick.previous.toml", "a b.toml", ".toml", "-x.toml"])
    def test_names_that_could_clash_with_folders_are_refused(self, recipe_file, name):
        with pytest.raises(ConfigError, match="rename the file"):
            config.load_recipe(recipe_file("", name))


class TestAssignments:
    def test_values_are_toml_or_bare_words(self):
        recipe = config.load_recipe(
            "quick",
            ["train.epochs=3", "augment.shifts=[[1, 2]]", "train.schedule=cosine", 'submit.message="two words"'],
        )
        assert (recipe.train.epochs, recipe.augment.shifts, recipe.train.schedule) == (3, ((1.0, 2.0),), "cosine")
        assert recipe.submit.message == "two words"

    def test_a_string_may_look_like_a_number(self):
        assert config.load_recipe("quick", ["submit.message=12"]).submit.message == "12"

    def test_the_last_assignment_counts(self):
        assert config.load_recipe("quick", ["train.epochs=3", "train.epochs=4"]).train.epochs == 4

    @pytest.mark.parametrize(
        "assignment",
        [
            *("train.epochs", "epochs=3", "train.epochs=x", "trian.epochs=3", "about.x=1"),
            *("train.epochs=1\ntrain.seed=2", f"train.seed={'9' * 5000}", f"train.seed=0x{'f' * 5000}"),
        ],
        ids=lambda assignment: assignment[:20],
    )
    def test_mistakes_name_the_option(self, assignment):
        with pytest.raises(ConfigError, match="--set"):
            config.load_recipe("quick", [assignment])

    @pytest.mark.parametrize(
        "layer", ["conv 32", "conv 32 3", "conv 0 3x3", "dense", "Relu", "relu 3", "max_pool 1", "x"]
    )
    def test_unknown_layers_are_refused(self, layer):
        with pytest.raises(ConfigError, match=r"model\.layers is"):
            config.load_recipe("ladder/lenet", [f'model.layers=["{layer}"]'])

    @pytest.mark.parametrize(
        ("name", "assignment", "condition"),
        [
            ("quick", "train.momentum=0.5", "train.momentum has an effect only if train.optimizer is sgd"),
            ("quick", "train.lr_gamma=0.5", "train.schedule is exponential"),
            ("quick", "train.steps=[[2, 0.1]]", "train.schedule is steps"),
            ("quick", "train.ema_decay=0.5", "train.swa_fraction is more than 0"),
            ("quick", 'model.layers=["relu"]', "model.name is layers"),
            ("ladder/lenet", "model.dropout=0.3", "model.layers contains dropout"),
            ("best", "model.view=wide", "ensemble.views is empty"),
            ("quick", "generate.samples=100", "gan.architecture is set"),
            ("dropout_cnn", "train.muon_learning_rate=0.1", "train.optimizer is muon"),
            ("dropout_cnn", "predict.shift_margin=0.5", "several shifts"),
        ],
    )
    def test_a_setting_without_effect_is_told(self, name, assignment, condition):
        (message,) = set(find_unused(config.load_recipe(name, [assignment]))) - {*find_unused(config.load_recipe(name))}
        assert condition in message and message.startswith(assignment.partition("=")[0])

    def test_a_setting_without_effect_is_told_when_a_stage_runs(self, command, tmp_path):
        run = command(
            "--stage", "download", "--recipe", "quick", "--set", "train.momentum=0.5", "--workspace", tmp_path
        )
        assert run.code == 0
        assert "note: train.momentum has an effect only if train.optimizer is sgd\n" in run.out

    def test_built_in_recipes_have_no_setting_without_effect(self):
        assert [note for name in config.recipe_names() for note in find_unused(config.load_recipe(name))] == []

    def test_a_classifier_in_a_recipe_with_a_gan_has_no_effect(self):
        (message,) = find_unused(config.load_recipe("gan/better", ["train.epochs=3", "affine.zoom=0.1"]))
        assert message.startswith("[affine], [train]: no effect")


class TestSchema:
    def test_models_are_those_that_exist(self, command, tmp_path):
        assert get_args(ModelName) == ("alexnet", "dropout_cnn", "layers", "medium_cnn", "small_cnn", "vgg16")
        run = command("--stage", "all", "--recipe", "quick", "--set", "model.name=smal_cnn", "--workspace", tmp_path)
        assert run.code == 2 and run.err.count("\n") == 1 and "small_cnn" in run.err

    def test_observational_settings_exist(self):
        assert FIELDS >= OBSERVATIONAL

    def test_recipes_are_immutable_hashable_and_picklable(self):
        recipe = config.load_recipe("quick")
        with pytest.raises(ValidationError):
            recipe.train.epochs = 3
        assert {recipe: 1}[config.load_recipe("quick")] == 1
        assert recipe != config.load_recipe("quick", ["train.seed=1"])
        assert pickle.loads(pickle.dumps(recipe)) == recipe

    def test_replace_validates_and_leaves_the_original(self):
        train = Train(epochs=3)
        assert train.replace(learning_rate=1) == Train(epochs=3, learning_rate=1.0) and train == Train(epochs=3)
        with pytest.raises(ValidationError):
            train.replace(epochs=0)
        with pytest.raises(ValidationError):
            train.replace(batch=3)

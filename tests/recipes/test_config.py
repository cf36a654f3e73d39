"""Settings as recorded values: flattened, compared with those of another run, hashed, and those of an estimate."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipes import config
from pipeline.recipes.config import DEFAULTS, OBSERVATIONAL
from pipeline.recipes.settings import SECTIONS, Train

FIELDS = {f"{section}.{field}" for section, kind in SECTIONS.items() for field in kind.model_fields}


class TestFlatten:
    def test_sections_and_single_settings(self):
        recipe = config.load_recipe("quick", ["augment.shifts=[[1, 2]]"])
        assert config.flatten(recipe, ["augment", "train.fit_all"]) == {
            "augment.shifts": [[1.0, 2.0]],
            "augment.angles": [],
            "augment.zooms": [],
            "train.fit_all": False,
        }

    def test_observational_settings_are_left_out(self):
        recipe = config.load_recipe("quick", ["train.record=true"])
        assert config.flatten(recipe, ["train", "train.record"]).keys() == {
            f"train.{field}" for field in Train.model_fields if field != "record"
        }

    @pytest.mark.parametrize("name", config.recipe_names())
    def test_values_read_back_from_json(self, name):
        settings = config.flatten(config.load_recipe(name), SECTIONS)
        assert json.loads(json.dumps(settings)) == settings and settings.keys() == FIELDS - OBSERVATIONAL

    def test_unknown_settings_are_an_error(self):
        with pytest.raises(KeyError):
            config.flatten(config.load_recipe("quick"), ["train.epoch"])


QUICK = config.flatten(config.load_recipe("quick"), ("model", "train"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)
# Values of real settings, some of them the defaults.
SETTINGS = st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.integers(0, 1) | st.just("default")).map(
    lambda settings: {name: DEFAULTS[name] if value == "default" else value for name, value in settings.items()}
)


class TestChangedSettings:
    def test_changes_are_named_in_order_with_both_values(self):
        current = QUICK | {"train.epochs": 20, "model.name": "medium_cnn"}
        assert config.changed_settings(QUICK, QUICK) == []
        assert config.changed_settings(QUICK, current) == [
            'model.name "small_cnn" -> "medium_cnn"',
            "train.epochs 12 -> 20",
        ]

    def test_a_setting_that_is_not_recorded_equals_its_default(self):
        recorded = {name: value for name, value in QUICK.items() if name not in ("train.seed", "train.swa_fraction")}
        assert config.changed_settings(recorded, QUICK) == []
        assert config.changed_settings(recorded, QUICK | {"train.swa_fraction": 0.5}) == [
            "train.swa_fraction 0.0 -> 0.5"
        ]

    def test_a_changed_default_is_named(self, monkeypatch):
        monkeypatch.setitem(DEFAULTS, "train.ema_decay", 0.9)
        assert config.changed_settings(QUICK, QUICK | {"train.ema_decay": 0.9}) == ["train.ema_decay 0.0 -> 0.9"]

    def test_a_removed_setting_is_named(self):
        assert config.changed_settings(QUICK | {"train.focus": 0.3}, QUICK) == ["train.focus 0.3 -> (removed)"]

    def test_the_settings_of_several_recipes(self):
        recorded = {"quick": {"train.epochs": 12}}
        assert config.changed_settings(recorded, {"quick": {"train.epochs": 12, "train.seed": 0}}) == []
        assert config.changed_settings(recorded, {"quick": {"train.epochs": 9}, "a/b": {"train.seed": 7}}) == [
            "a/b: train.seed 0 -> 7",
            "quick: train.epochs 12 -> 9",
        ]

    def test_long_values_are_shortened(self):
        (change,) = config.changed_settings(QUICK, QUICK | {"model.layers": ["conv 32 3x3"] * 99})
        assert change == 'model.layers [] -> ["conv 32 3x3", "conv 32 3x3", "conv ...'

    @given(JSON | st.dictionaries(st.sampled_from([*QUICK, "train.x"]), JSON))
    def test_any_recorded_value_gives_short_lines(self, recorded):
        changes = config.changed_settings(recorded, QUICK)
        assert all(len(change) < 250 for change in changes)
        named = {change.split(" ")[0] for change in changes}
        for name, value in recorded.items() if isinstance(recorded, dict) else ():
            if name in QUICK:
                assert (name in named) == (value != QUICK[name])

    @given(SETTINGS, SETTINGS)
    def test_equal_digests_mean_no_changes_among_common_settings(self, recorded, current):
        changes = config.changed_settings(recorded, {**recorded, **current})
        assert bool(changes) == (config.digest(recorded) != config.digest({**recorded, **current}))


class TestDigest:
    def test_a_new_setting_with_a_neutral_default_changes_no_digest(self, monkeypatch):
        before = config.digest(QUICK)
        monkeypatch.setitem(DEFAULTS, "train.new", 0)
        assert config.digest(QUICK | {"train.new": 0}) == before
        assert config.digest(QUICK | {"train.new": 1}) != before

    def test_order_and_defaults_do_not_count_but_changed_values_do(self):
        assert config.digest(dict(reversed(QUICK.items()))) == config.digest(QUICK)
        assert config.digest(DEFAULTS) == config.digest({})
        assert config.digest(QUICK | {"train.epochs": 13}) != config.digest(QUICK)


class TestMeasured:
    @pytest.mark.parametrize("name", config.recipe_names())
    def test_an_accuracy_was_measured_with_the_settings_of_its_recipe(self, name):
        recipe = config.load_recipe(name)
        assert bool(recipe.measured.seeds) == (name in ("quick", "standard", "best"))
        if recipe.measured.seeds:
            assert recipe.measured.rows and recipe.measured.training_rows and recipe.measured.data
            assert config.measured_difference(recipe) == ""

    def test_the_first_difference_is_named(self):
        recipe = config.load_recipe("quick", ["train.epochs=13", "affine.shear=7"])
        assert config.measured_difference(recipe) == "affine.shear 6.0 -> 7.0"

    @pytest.mark.parametrize(
        "assignments",
        [
            ["train.seed=7"],
            ["train.fit_all=true"],
            ["train.deterministic=true"],
            ["train.record=true"],
            ["ensemble.threads=3"],
            ["split.seed=1", "split.folds=5"],
        ],
    )
    def test_settings_that_do_not_change_the_accuracy_on_other_rows(self, assignments):
        assert config.measured_difference(config.load_recipe("quick", assignments)) == ""

    def test_a_recipe_file_has_no_measured_accuracy(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text((config.RECIPES / "quick.toml").read_text())
        assert not config.load_recipe(str(path)).measured.seeds

    def test_the_defaults_are_those_that_accuracies_were_measured_with(self):
        """A digest contains only what differs from the defaults. After a neutral new setting, renew this value."""
        defaults = {name: value for name, value in DEFAULTS.items() if name.split(".")[0] in config.ACCURACY_SETTINGS}
        text = json.dumps(defaults, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest()[:12] == "8e22b148546a"

"""The arguments of the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipeline import ROOT
from pipeline.errors import show_error
from pipeline.extras import EXTRAS
from pipeline.kaggle import machine
from pipeline.recipes import config
from pipeline.stages import STAGES
from pipeline.workflow.stage import Stage

# The default workspace: the pipeline's folder, or the folder for outputs of a Kaggle Notebook.
HOME = machine.working_root() or ROOT
ENTRIES = STAGES | EXTRAS  # of the tables of stages and extras
TRACKERS = ("none", "tensorboard")

_ALL = {"all", *ENTRIES}
# The stages and actions that use an option. What describes a run (--recipe, --set, --data, --device) applies to all of
# its stages, so that a command can be repeated for another stage or with --status. --debug applies to everything.
USED_BY = {
    "recipe": {*_ALL, "--status"},
    "set": {*_ALL, "--status", "--clean"},
    "data": {*_ALL - {"notebook"}, "--status"},  # a notebook reads the competition's data on Kaggle
    "device": {*_ALL, "--status"},  # it also selects the default recipe
    "engine": {"all", "train"},
    "tracker": {"all", "train"},
    "seeds": {"compare"},
    "ensemble": {"compare"},
    "images": {"recognize"},
    "workspace": {*_ALL, "--status", "--clean"},
    "force": _ALL - {"recognize"},  # which keeps nothing
    "wait": {*_ALL, "--clean"},
    "yes": {"--clean"},
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        show_error(f"error: {message} (--help lists the options)")
        self.exit(2)


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def _stage(text: str) -> str:
    if text != "all" and text not in ENTRIES:
        raise argparse.ArgumentTypeError(f"unknown stage {text!r}{config.nearest(text, ('all', *ENTRIES))}")
    return text


def _file_name(text: str) -> str:
    """The text with its home folder inserted: a shell does not in `--data=~/digits.zip`."""
    name = config.expand_home(text)
    if name.startswith("~") and not os.path.lexists(name):
        raise argparse.ArgumentTypeError(f"{text}: unknown home folder; ./{text} is a name that begins with ~")
    return name


def _path(text: str) -> Path:
    return Path(_file_name(text))


def _stage_names(on_demand: bool) -> str:
    return ", ".join(stage.name for stage in ENTRIES.values() if stage.on_demand == on_demand)


def _describe_users(users: set[str]) -> str:
    """The stages and actions that use an option, in words."""
    left_out = _ALL - users
    if not left_out:
        stages = ["--stage"]
    elif len(left_out) == 1:
        stages = [f"stages other than {name}" for name in left_out]
    else:
        stages = [f"--stage {name}" for name in sorted(users & _ALL)]
    return " and ".join([*sorted(users - _ALL), *stages])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked as far as that is possible without reading files."""
    parser = _Parser(
        prog="run_pipeline.py",
        allow_abbrev=False,
        description="From the Digit Recognizer's CSVs to a checked submission.csv, stage by stage.",
        epilog=f"Stages: {_stage_names(on_demand=False)} (together: all); on demand: {_stage_names(on_demand=True)}. "
        "`all` runs what is missing or stale; a stage that is requested by name always runs. `compare` trains several "
        "recipes, each with several seeds, and writes a table. `generate` trains a GAN (a recipe such as gan/better) "
        "instead of a classifier.",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--stage", type=_stage, metavar="STAGE", help="the stage to run")
    action.add_argument("--status", action="store_true", help="show what is fresh, stale (and why) or missing")
    action.add_argument("--list", action="store_true", help="show the recipes")
    action.add_argument(
        "--clean", action="store_true", help="list the files that nothing uses; with --yes, delete them"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml|FOLDER|a,b",
        help="default: dropout_cnn on CUDA, quick on other devices; a,b: the mean of several recipes' networks (with "
        "--stage compare: the recipes to compare); a folder of recipes: each of them in turn",
    )
    parser.add_argument(
        "--data",
        type=_file_name,
        default="auto",
        metavar="auto|kaggle|sample|openml|PATH",
        help="where the data come from",
    )
    parser.add_argument("--set", action="append", default=[], metavar="section.field=value", help="change a setting")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="the device to use")
    parser.add_argument(
        "--engine",
        default="local",
        metavar="local|dask=tcp://HOST:PORT",
        help="where the networks of an ensemble are trained",
    )
    parser.add_argument(
        "--tracker", default="none", choices=TRACKERS, help="with --stage train or all: also write event files"
    )
    parser.add_argument(
        "--seeds",
        type=_positive_integer,
        metavar="N",
        help="with --stage compare: trainings of each recipe (compare.seeds)",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="with --stage compare: also average each recipe's seeds (compare.ensemble)",
    )
    parser.add_argument(
        "--images", nargs="+", type=_path, metavar="PATH", help="with --stage recognize: files or folders"
    )
    parser.add_argument("--workspace", type=_path, default=HOME, metavar="DIR", help="contains data/ and submissions/")
    parser.add_argument("--force", action="store_true", help="start over: ignore cached and interrupted results")
    parser.add_argument("--wait", action="store_true", help="wait if another run uses the workspace")
    parser.add_argument("--yes", action="store_true", help="with --clean: delete the files")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for argument in sys.argv[1:] if arguments is None else arguments:
        if argument == "--":
            break
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in parser._option_string_actions:
            parser.error(f"unknown option {name}{config.nearest(name, parser._option_string_actions)}")
    options = parser.parse_args(arguments)
    user = options.stage or next(f"--{name}" for name in ("status", "list", "clean") if getattr(options, name))
    for name, users in USED_BY.items():
        if getattr(options, name) != parser.get_default(name) and user not in users:
            target = f"--stage {user}" if options.stage else user
            parser.error(f"--{name} does not apply to {target}, only to {_describe_users(users)}")
    stage = ENTRIES.get(options.stage)
    if isinstance(stage, Stage) and stage.join and not options.recipe:
        parser.error(f"--stage {options.stage} requires --recipe a,b,c: recipes, or folders of recipes")
    if options.stage == "recognize" and not options.images:
        parser.error("--stage recognize requires --images PATH...")
    options.set += [f"compare.seeds={options.seeds}"] if options.seeds else []
    options.set += ["compare.ensemble=true"] if options.ensemble else []
    return options

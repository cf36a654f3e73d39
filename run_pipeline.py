#!/usr/bin/env python3
"""The command line of the Digit Recognizer pipeline: `python run_pipeline.py --stage all`."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path

from pipeline import artifacts, competition, recipe, sources
from pipeline.settings import RecipeError
from pipeline.stages import STAGES, blending, cleaning, comparing, engine, members, summary, tracking

HOME = Path(__file__).resolve().parent


class Terminated(BaseException):
    """SIGTERM arrived."""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message} (--help shows how to call)\n")


def parse(words):
    """The command line, checked as far as it can be without reading anything."""
    parser = _Parser(
        prog="run_pipeline.py",
        allow_abbrev=False,
        description="From the Digit Recognizer's CSVs to a checked submission.csv, stage by stage.",
        epilog="Stages: download, prepare, augment, train, evaluate, predict (together: all), and submit. "
        "`all` runs what is missing or stale; a stage given by name runs always. `compare` trains several recipes, "
        "each with several seeds, and leaves a table and pictures.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", choices=("all", *STAGES, "compare"), help="what to run")
    what.add_argument("--status", action="store_true", help="show what is fresh, stale (and why) or missing")
    what.add_argument("--list", action="store_true", help="show the recipes")
    what.add_argument("--clean", action="store_true", help="list what no recipe's settings use; with --yes, remove it")
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help="default: dropout_cnn on CUDA, quick on other devices; a,b,c with predict or submit: their blend, "
        "with compare: those recipes; the name of a folder of recipes: each of them",
    )
    parser.add_argument(
        "--data", default="auto", metavar="auto|kaggle|sample|openml|PATH", help="where data comes from"
    )
    parser.add_argument("--set", action="append", default=[], metavar="section.field=value", help="change a setting")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument(
        "--engine", default="local", metavar="local|dask=tcp://HOST:PORT", help="where an ensemble's networks train"
    )
    parser.add_argument(
        "--tracker", default="none", choices=tracking.TRACKERS, help="with train or all: also write event files"
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help=f"with compare: so many runs of each recipe; default: {comparing.SEEDS}"
    )
    parser.add_argument("--ensemble", action="store_true", help="with compare: also the mean of each recipe's seeds")
    parser.add_argument("--workspace", type=Path, default=HOME, metavar="DIR", help="holds data/ and submissions/")
    parser.add_argument("--force", action="store_true", help="start over: no cache, no interrupted training")
    parser.add_argument("--wait", action="store_true", help="wait for another run in the same workspace")
    parser.add_argument("--yes", action="store_true", help="with --clean: remove")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(words)
    if arguments.tracker != "none" and arguments.stage not in ("all", "train"):
        parser.error(f"--tracker {arguments.tracker} is for --stage all and train")
    if arguments.stage != "compare" and (arguments.seeds is not None or arguments.ensemble):
        parser.error("--seeds and --ensemble are for --stage compare")
    if arguments.stage == "compare" and not arguments.recipe:
        parser.error("--stage compare wants --recipe a,b,c: recipes, or folders of them")
    if arguments.ensemble and arguments.seeds == 1:
        parser.error("--ensemble averages seeds: --seeds 2 or more")
    if arguments.stage == "submit" and arguments.recipe and recipe.folder(arguments.recipe):
        parser.error(f"--stage submit --recipe {arguments.recipe}: one recipe at a time, or a,b,c for their blend")
    if arguments.seeds is not None and not 1 <= arguments.seeds <= 1000:
        parser.error(f"--seeds {arguments.seeds}: from 1 to 1000")
    return arguments


def main(words=None):
    """Run the command line; returns the exit code."""
    arguments = parse(words)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        if arguments.list:
            return show_recipes()
        if arguments.status:
            return show_status(arguments)
        if arguments.clean:
            return clean(arguments)
        if arguments.stage == "compare":
            compare(arguments)
            return 0
        for name in recipe.folder(arguments.recipe) or [arguments.recipe]:
            arguments.recipe = name
            run(arguments)
        return 0
    except (KeyboardInterrupt, Terminated) as stop:
        if arguments.debug:
            traceback.print_exc()
        without = " without --force" if arguments.force else ""
        print(f"stopped: what was finished is kept; the same command{without} goes on from there", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2 if _is_mistake(error) else 1


def show_recipes():
    known = [recipe.load(name) for name in recipe.names()]
    width = max(len(one.name) for one in known)
    for one in known:
        print(f"{one.name:<{width}}  {one.about}")
    return 0


def show_status(arguments):
    """A table a recipe: the one that is asked for, or every one that has runs."""
    chosen = (
        (recipe.folder(arguments.recipe) or [arguments.recipe])
        if arguments.recipe
        else cleaning.recipes_with_runs(arguments.workspace)
    )
    for name in chosen or ["quick"]:
        try:
            call, blended = _call(arguments, name)
        except RecipeError as error:
            if arguments.recipe:
                raise
            print(f"a recipe that has runs cannot be read: {error}")
            continue
        print(f"recipe {call.recipe.name}" + ("" if chosen else " (none has runs yet)"))
        known = {}
        for stage in call.stages.values():
            if stage.folder:
                how, why = engine.state(call, stage, known)
                if stage.by_name and how == "missing" and not why:
                    continue
                print(f"  {stage.name:<10}{how:<9}{why}".rstrip())
        for line in () if blended else comparing.status(call, known):
            print(f"  {line}")
    return 0


def clean(arguments):
    lock = _lock(arguments, "clean") if arguments.yes else None
    unused = cleaning.unused(arguments.workspace, arguments.set)
    for path in unused:
        print(f"{'removing' if arguments.yes else 'unused:'} {path}")
        if arguments.yes:
            cleaning.remove(path)
    if not unused:
        print("nothing is unused")
    elif not arguments.yes:
        print("--clean --yes removes them")
    if lock:
        lock.release()
    return 0


def run(arguments):
    """Run one stage, or all that are missing or stale."""
    name = arguments.recipe or _default_recipe(arguments)
    call, blended = _call(arguments, name)
    chosen, table = call.recipe, call.stages
    if blended and arguments.stage not in ("predict", "submit"):
        raise engine.StageError(f"--recipe {name}: a blend is for --stage predict and submit; run each recipe before")
    if arguments.engine != "local" and not arguments.engine.startswith("dask=tcp://"):
        raise engine.StageError(f"--engine {arguments.engine}: expected local or dask=tcp://HOST:PORT")
    if arguments.engine != "local" and not members.plan(chosen):
        raise engine.StageError(f"--engine {arguments.engine}: {name} trains one network, and only several go there")
    tracking.require(arguments.tracker)
    if arguments.stage in ("all", "train", "evaluate", "predict", "inspect"):
        call.device = engine.choose_device(arguments.device)
    asked = [stage for stage in table.values() if arguments.stage == stage.name]
    stages = asked or [stage for stage in table.values() if not stage.by_name]
    with _at_work(arguments) as (lock, log):
        _listen(call, lock, log)
        if arguments.recipe or arguments.stage != "download":
            hint = "" if arguments.recipe else " (--recipe chooses another)"
            log.say(f"recipe {chosen.name}: {chosen.about}{hint}")
        engine.restore_all(call)
        began = time.time()
        if blended:
            blending.require(blended, call)
        for stage in stages:
            if asked:
                engine.require_needs(call, stage)
            engine.bring_about(call, stage, "asked for" if asked else "")
        if stages[-1].name == "predict":
            summary.show_result(call)
            summary.suggest_next(call)
        _say_what_was_not_seen(call, began)
        summary.warn_of_sample(call)


def _default_recipe(arguments):
    """The default recipe if --recipe is not given: it depends on the device that the run will use."""
    if arguments.stage == "download":  # the same for every recipe; asking for the device would import PyTorch
        return "quick"
    return "dropout_cnn" if engine.choose_device(arguments.device) == "cuda" else "quick"


def _say_what_was_not_seen(call, began):
    """Say where a training that is fresh was not recorded or tracked, although this call asks for it."""
    train = call.place(call.stages["train"]) if "train" in call.stages else None
    if train and train.exists() and train.stat().st_mtime < began:
        missed = ["recorded"] if call.recipe.train.record and not (train / "record.json").exists() else []
        if missed := missed + (["tracked"] if call.tracker != "none" else []):
            words = " and ".join(missed)
            call.say(f"note: the training is fresh and was not {words}: --stage train{call.words} trains it again")


def compare(arguments):
    """Train each recipe with each seed where that is missing or stale, and leave the table."""
    if arguments.engine != "local":
        raise engine.StageError("--stage compare trains on this machine: leave --engine out")
    chosen = comparing.recipes(arguments.recipe, arguments.set)
    suffixes = comparing.suffixes(chosen)
    comparing.require_networks(chosen)
    device, title = engine.choose_device(arguments.device), comparing.title(arguments.recipe, arguments.set)
    with _at_work(arguments) as (lock, log):
        log.say(f"compare: {', '.join(one.name for one in chosen)}")
        calls = [_call_of(arguments, one.name, one) for one in chosen]
        for call in calls:
            _listen(call, lock, log)
            call.device = device
            engine.restore_all(call)
        seeds = arguments.seeds or comparing.SEEDS
        folder = comparing.run(calls, suffixes, seeds, arguments.ensemble, title, log.path)
        log.say(f"table: {summary.shown(folder / comparing.MARKDOWN)}; page: {summary.shown(folder / comparing.PAGE)}")
        summary.warn_of_sample(calls[0])


def _listen(call, lock, log):
    """Take what a call says to the screen, to the log and to who waits for the workspace."""
    call.say, call.note = log.say, lambda text: log.write_only(f"{text}\n")
    call.tell = lambda stage: lock.tell({"stage": stage, "since": time.strftime("%Y-%m-%d %H:%M:%S")})


def _call(arguments, name):
    """The call for a recipe's name, and, where there are several with commas between, the recipes of that blend."""
    given = [name] if Path(name).is_file() else name.split(",")
    recipes = [recipe.load(each, arguments.set) for each in given]
    if len(recipes) > 1:
        return blending.call_for(recipes, arguments.workspace, **_options(arguments, given[0])), recipes
    return _call_of(arguments, given[0], recipes[0]), []


def _call_of(arguments, name, one):
    return engine.Call(STAGES, arguments.workspace, one, **_options(arguments, name))


def _options(arguments, name):
    """What of the command line a call holds, beside its recipe, which was given as `name`."""
    options = []
    if arguments.workspace != HOME:
        options += ["--workspace", str(arguments.workspace)]
    if arguments.data != "auto":
        options += ["--data", arguments.data]
    for assignment in arguments.set:
        options += ["--set", assignment]
    if arguments.device != "auto":  # it also selects the default recipe
        options += ["--device", arguments.device]
    return {
        "named": name if arguments.recipe else "",
        "options": "".join(f" {shlex.quote(word)}" for word in options),
        "data": arguments.data,
        "asked": arguments.device,
        "tracker": arguments.tracker,
        "engine": arguments.engine,
        "force": arguments.force,
    }


@contextlib.contextmanager
def _at_work(arguments):
    """The workspace's lock and the run's log, which also takes what ends the run."""
    lock = _lock(arguments, arguments.stage)
    log = _Log(arguments.workspace / "data" / "logs", arguments.stage)
    try:
        yield lock, log
    except BaseException as error:
        with contextlib.suppress(OSError):  # on a full disk, the error to tell is the first
            log.write_only(traceback.format_exc() if isinstance(error, Exception) else f"stopped by {error!r}\n")
        raise
    finally:
        lock.release()


def _lock(arguments, stage):
    if arguments.workspace.exists() and not arguments.workspace.is_dir():
        raise engine.StageError(f"--workspace {arguments.workspace}: not a folder")
    lock = artifacts.Lock(arguments.workspace / "data" / ".lock")
    holder = {"stage": stage, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    lock.acquire(holder, arguments.wait, print)
    return lock


class _Log:
    """What a run says, on stdout and in a file of its own under data/logs/."""

    def __init__(self, folder, stage):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{stage}-{os.getpid()}.log"

    def say(self, text):
        print(text, flush=True)
        self.write_only(f"{text}\n")

    def write_only(self, text):
        artifacts.write(self.path, f"{time.strftime('%H:%M:%S')} {text}".encode(), append=True)


def _is_mistake(error):
    """Whether the user can mend it: a mistake in the call, the settings or the data."""
    if isinstance(error, competition.CompetitionError):
        return error.mistake
    mistakes = [RecipeError, sources.SourceError, engine.StageError, FloatingPointError]
    if "pipeline.digits" in sys.modules:  # not imported before it is needed: it takes numpy along
        mistakes.append(sys.modules["pipeline.digits"].DataError)
    return isinstance(error, tuple(mistakes))


def _one_line(error):
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    known = (ValueError, artifacts.Held, competition.CompetitionError, FloatingPointError)
    known += (engine.InputChanged, engine.NoSpace)
    return text if isinstance(error, known) and text else f"{type(error).__name__}: {text}"


def _on_sigterm(number, frame):
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())

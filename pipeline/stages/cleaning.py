"""What no recipe's current settings use: cached splits and variants, and what stopped runs left behind."""

import shutil
from pathlib import Path

from pipeline import artifacts, recipe
from pipeline.settings import RecipeError
from pipeline.stages import STAGES, comparing, engine, members


def recipes_with_runs(workspace):
    """The recipes that have a run, by name, or by file where that is how they were given; in order."""
    runs = workspace / "data" / "runs"
    found = {}
    for context in sorted(
        path for folder in ("train", "train.partial", "seed*") for path in runs.rglob(f"{folder}/{artifacts.CONTEXT}")
    ):
        file = (artifacts.read_json(context) or {}).get("recipe_file")
        name = context.parent.parent.relative_to(runs).as_posix()
        found[name] = file if isinstance(file, str) and file else name
    return [found[name] for name in sorted(found)]


def unused(workspace, assignments):
    """Folders and files that `--clean` removes, in order: no finished run, none that can resume, no submission."""
    used = set()
    for name in {*recipe.names(), *recipes_with_runs(workspace)}:
        for given in ((), assignments):
            try:
                call = engine.Call(STAGES, workspace, recipe.load(name, given))
            except RecipeError:  # a file that is gone, or a setting that only other recipes have
                continue
            for place in members.places(workspace, call.recipe):
                used |= {place.resolve(), place.with_name(f"{place.name}.partial").resolve()}
                used.add(place.with_name(f"{place.name}.lock").resolve())
            for stage in STAGES.values():
                if stage.folder:
                    used |= {call.place(stage), artifacts.standing(call.place(stage))}
    workspace = workspace.resolve()
    data = workspace / "data"
    cached = [path for name in ("prepared/splits", "augmented", "members") for path in (data / name).glob("*")]
    stopped = [*data.rglob("*.partial"), *(workspace / "submissions").rglob("*.partial")]
    halves = [*data.rglob(".*.tmp"), *(workspace / "submissions").rglob(".*.tmp")]
    for path in data.glob("runs/**/train.partial/" + members.NAMES):
        folders = (artifacts.read_json(path) or {}).get("folders", ())
        used |= {data / "members" / f"{one}{end}" for one in folders for end in ("", ".partial", ".lock")}
    resumable = {f"{name}.partial" for name, stage in STAGES.items() if stage.resumes}
    compared = (data / "runs").rglob("seed*.partial")
    used |= {path for path in compared if comparing.resumable(workspace, path, assignments)}
    left = sorted({path for path in (*cached, *stopped, *halves) if path not in used and path.name not in resumable})
    return [path for path in left if not any(Path(parent) in left for parent in path.parents)]


def remove(path):
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

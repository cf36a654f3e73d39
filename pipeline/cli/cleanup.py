"""Files in the workspace that nothing uses any more: cached data, networks, and what interrupted runs left."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli.workflows import JOINT, STAGES, expand
from pipeline.recipes import config
from pipeline.recipes.config import ConfigError
from pipeline.training import imagenet
from pipeline.workflow import publishing, schemas, store
from pipeline.workflow.engine import Workflow
from pipeline.workflow.stage import Stage

CACHES = ("data/augmented", "data/features", "data/networks", "data/prepared/splits")
# The folders in which the pipeline publishes folders, and those in which all interrupted work can be continued.
PLACES = (*CACHES, "data", "data/notebook", "data/prepared", "data/runs/**", "submissions/**")
RESUMED = ("data/compare", "data/generated/**")
# Names of cached results and their locks, which end with a digest; of staging folders; of files by torch.hub.
CACHED = re.compile(r"(.+-)?[0-9a-f]{12}(\.lock)?", re.DOTALL)
PARTIAL = re.compile(r"(?!train\.).+\.partial[0-9]*", re.DOTALL)
DOWNLOAD = re.compile(rf"({'|'.join(map(re.escape, imagenet.FILES.values()))})\.[0-9a-f]{{32}}\.partial")


def recipes_with_runs(workspace: Path) -> list[str]:
    """The recipes that have a run, in order: names, or paths of recipe files."""
    arguments: dict[str, str] = {}
    for name, argument, _ in _runs(workspace):
        arguments.setdefault(name, argument)
    return [arguments[name] for name in sorted(arguments)]


def _runs(workspace: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The results in the workspace: the recipe's name, the value of --recipe, and the values of --set."""
    runs, generated = workspace / "data" / "runs", workspace / "data" / "generated"
    contexts = []
    paths = _files_called(store.CONTEXT, runs)
    for folder in ("train", "train.partial", "evaluate"):
        for path in (path for path in paths if path.parent.name == folder):
            name = path.parent.parent.relative_to(runs).as_posix()
            contexts.append((name, store.read_json(path, schemas.Context) or {}))
    for path in _files_called(store.CONTEXT, generated):
        name = path.parent.relative_to(generated).as_posix().removesuffix(".partial").removesuffix(".previous")
        contexts.append((name, store.read_json(path, schemas.Context) or {}))
    for name, context in contexts:
        yield name, context.get("recipe") or name, tuple(context.get("assignments", ()))


def joint_runs(workspace: Path, stage: Stage) -> Iterator[tuple[str, dict[str, Any]]]:
    """The results of a stage over several recipes, in order: the name of each and the content of its context.json."""
    root = workspace / stage.folder.partition("{")[0]
    contexts = {
        path.parent.relative_to(root).as_posix().removesuffix(".partial"): store.read_json(path, schemas.Context) or {}
        for path in reversed(_files_called(store.CONTEXT, root))
    }
    is_shared = any(other.folder == stage.folder for other in STAGES.values())
    for name, context in sorted(contexts.items()):
        if context.get("stage") == stage.name or not (context or is_shared):
            yield name, context


def _files_called(name: str, top: Path) -> list[Path]:
    """The files with a name in a folder and below, sorted; links are followed, and each folder is searched once."""
    folders, paths, searched = [top], list[Path](), set[Path]()
    for folder in folders:
        for parent, below, files in os.walk(folder):
            path = Path(parent)
            if _real(path) in searched:
                below.clear()
            elif name in files:
                paths.append(path / name)
            searched.add(_real(path))
            folders += [path / link for link in below if (path / link).is_symlink()]
    return sorted(paths)


def find_unused(workspace: Path, assignments: Sequence[str]) -> list[Path]:
    """Files and folders that `--clean` removes: no finished run, nothing that can resume, no submission.

    Links are not followed: nothing outside the workspace is among them. A folder that contains anything of the user's
    is not among them either, only the files there that the pipeline wrote.
    assignments: the values of --set: data that the recipes use with these settings counts as used.
    """
    root = store.resolve(workspace)
    used, data = _used_by_recipes(workspace, assignments), root / "data"
    for name in _referenced_networks(data):
        folder = data / "networks" / name
        beside = (publishing.staging_dir(folder), publishing.previous_dir(folder), folder.with_name(f"{name}.lock"))
        used |= {_real(path) for path in (folder, *beside)}
    used |= _used_features(data)
    cached = {path for path in _content(root, CACHES) if CACHED.fullmatch(path.name) or publishing.is_staged(path)}
    published = _content(root, PLACES)
    interrupted = {path for path in published if PARTIAL.fullmatch(path.name) and publishing.is_staged(path)}
    unused = (cached | interrupted) - used
    published |= _content(root, RESUMED)
    files = [path for folder in sorted(unused) for path in _removable(folder)]
    published = {folder for folder in published - unused if store.own_names(folder)}
    files += [path for folder in sorted(published) for path in store.temporary_files(folder)]
    return files + sorted(path for path in _content(root, (imagenet.FOLDER,)) if DOWNLOAD.fullmatch(path.name))


def linked_places(workspace: Path) -> list[Path]:
    """The links in the workspace in place of a folder that `--clean` searches."""
    places = {workspace / place.removesuffix("/**") for place in (*PLACES, *RESUMED, imagenet.FOLDER)}
    return sorted(place for place in places if place.is_symlink())


def _content(root: Path, places: Sequence[str]) -> set[Path]:
    """What is in folders of the workspace, except links and what they lead to."""
    paths = {path for place in places for path in root.glob(f"{place}/*")}
    return {path for path in paths if not path.is_symlink() and _real(path) == path}


def _real(path: Path) -> Path:
    """The path with its links resolved. A link to itself stays, for which `Path.resolve` raises RuntimeError."""
    return Path(os.path.realpath(path))


def _removable(path: Path) -> list[Path]:
    """A cached or staging folder if the pipeline wrote everything there, otherwise the files that it wrote."""
    if not path.is_dir():
        return [path] if path.suffix == ".lock" and not path.stat().st_size else []
    own = store.own_files(path)
    others = {other for other in path.rglob("*") if other.is_symlink() or not other.is_dir()}.difference(own)
    return own if others or not own else [path]


def _used_by_recipes(workspace: Path, assignments: Sequence[str]) -> set[Path]:
    """The folders of all stages for the built-in recipes and those with runs, with and without `assignments`.

    Of runs, also the folders with the settings of the run. Links in the paths are resolved.
    """
    used = set()
    in_runs = {(argument, changes) for _, argument, changes in _runs(workspace)}
    names = {*config.recipe_names(), *(name for name, _ in in_runs)}
    changed = {(name, tuple(changes)) for name in names for changes in ((), assignments)}
    for name, changes in changed | in_runs | set(_joined_recipes(workspace)):
        try:
            workflow = Workflow(STAGES, workspace, config.load_recipe(name, changes))
        except ConfigError:  # a file that is gone, or a setting that contradicts this recipe
            continue
        for folder in map(workflow.folder, STAGES.values()):
            used |= {folder, publishing.published_dir(folder)}
    return used


def _joined_recipes(workspace: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The recipes of comparisons and blends, with the values of --set, also as trained on all rows."""
    for stage in JOINT.values():
        for _, context in joint_runs(workspace, stage):
            changes = tuple(context.get("assignments", ()))
            for name in expand(context.get("recipes", ())):
                yield from ((name, changes), (name, (*changes, "train.fit_all=true")))


def _referenced_networks(data: Path) -> set[str]:
    """The folder names of the networks that a finished or interrupted stage refers to."""
    names = set()
    for top in (data / "runs", data / "compare", data / "generated"):
        for path in (top, *top.glob("*")):
            store.resolve(path)  # what a run on a disk that is not mounted refers to is not known
        for path in _files_called(store.MANIFEST, top):
            manifest, _ = store.read_manifest(path.parent)
            names |= {network["folder"] for network in manifest["numbers"].get("networks", ())} if manifest else set()
        for path in _files_called(store.REFERENCES, top):
            names |= {*(store.read_json(path, schemas.References) or {"folders": ()})["folders"]}
    return names


def _used_features(data: Path) -> set[Path]:
    """The features of the present images that belong to referenced networks, or to interrupted work."""
    manifests = [store.read_manifest(path.parent)[0] or {} for path in data.glob(f"prepared/*/{store.MANIFEST}")]
    images = {digest for manifest in manifests for digest in manifest.get("outputs", {}).values()}
    extractors, is_training = set(), False
    for name in _referenced_networks(data):
        manifest, _ = store.read_manifest(publishing.published_dir(data / "networks" / name))
        is_training |= manifest is None  # which features it uses is recorded at the end
        extractors.add((manifest or {"numbers": {}})["numbers"].get("extractor"))
    used = set()
    for folder in data.glob("features/*"):
        is_partial = folder.name.endswith(".partial")
        started = store.read_json(folder / store.STARTED, schemas.Started) if is_partial else None
        key = started or store.read_manifest(folder)[0]
        inputs = (key or {}).get("inputs", {})
        if inputs.get("images") in images and (is_partial or is_training or inputs.get("extractor") in extractors):
            used.add(_real(folder))
    return used


def remove(path: Path) -> None:
    """Delete a file, or what the pipeline wrote in a folder, which is deleted too if nothing else is there."""
    if path.is_dir() and not path.is_symlink():
        store.delete_own(path)
        with contextlib.suppress(OSError):
            path.rmdir()
    else:
        path.unlink(missing_ok=True)

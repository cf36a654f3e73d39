"""Files in the workspace that nothing uses any more: cached data, networks, and what interrupted runs left."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
    """The recipes that have a run, in order: names, paths of recipe files, or "a,b" for blends."""
    arguments: dict[str, str] = {}
    for name, argument, _ in _runs(workspace):
        arguments.setdefault(name, argument)
    return [arguments[name] for name in sorted(arguments)]


def _runs(workspace: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The results in the workspace: the recipe's name, the value of --recipe, and the values of --set."""
    runs, generated = workspace / "data" / "runs", workspace / "data" / "generated"
    contexts = []
    for folder in ("train", "train.partial", "evaluate"):
        for path in sorted(runs.rglob(f"{folder}/{store.CONTEXT}")):
            name = path.parent.parent.relative_to(runs).as_posix()
            contexts.append((name, store.read_json(path, schemas.Context) or {}))
    for path in sorted(generated.rglob(store.CONTEXT)):
        name = path.parent.relative_to(generated).as_posix().removesuffix(".partial").removesuffix(".previous")
        contexts.append((name, store.read_json(path, schemas.Context) or {}))
    for name, context in contexts:
        argument = context.get("recipe") if "+" in name else context.get("recipe_file")
        yield name, argument or name, tuple(context.get("assignments", ()))


def find_unused(workspace: Path, stages: Mapping[str, Stage], assignments: Sequence[str]) -> list[Path]:
    """Files and folders that `--clean` removes: no finished run, nothing that can resume, no submission.

    A folder that contains anything of the user's is not among them, only the files there that the pipeline wrote.
    assignments: the values of --set: data that the recipes use with these settings counts as used.
    """
    root = workspace.resolve()
    used, data = _used_by_recipes(workspace, stages, assignments), root / "data"
    for name in _referenced_networks(data):
        folder = data / "networks" / name
        beside = (publishing.staging_dir(folder), publishing.previous_dir(folder), folder.with_name(f"{name}.lock"))
        used |= {path.resolve() for path in (folder, *beside)}
    used |= _used_features(data)
    cached = {path for place in CACHES for path in root.glob(f"{place}/*")}
    cached = {path for path in cached if CACHED.fullmatch(path.name) or publishing.is_staged(path)}
    published = {path for place in PLACES for path in root.glob(f"{place}/*")}
    interrupted = {path for path in published if PARTIAL.fullmatch(path.name) and publishing.is_staged(path)}
    unused = {path for path in cached | interrupted if path.resolve() not in used}
    published |= {path for place in RESUMED for path in root.glob(f"{place}/*")}
    files = [path for folder in sorted(unused) for path in _removable(folder)]
    published = {folder for folder in published - unused if store.own_names(folder)}
    files += [path for folder in sorted(published) for path in store.temporary_files(folder)]
    return files + sorted(path for path in (root / imagenet.FOLDER).glob("*") if DOWNLOAD.fullmatch(path.name))


def _removable(path: Path) -> list[Path]:
    """A cached or staging folder if the pipeline wrote everything there, otherwise the files that it wrote."""
    if path.is_symlink():
        return []
    if not path.is_dir():
        return [path] if path.suffix == ".lock" and not path.stat().st_size else []
    own = store.own_files(path)
    others = {other for other in path.rglob("*") if other.is_symlink() or not other.is_dir()}.difference(own)
    return own if others else [path] if own or not any(path.iterdir()) else []


def _used_by_recipes(workspace: Path, stages: Mapping[str, Stage], assignments: Sequence[str]) -> set[Path]:
    """The folders of all stages for the built-in recipes and those with runs, with and without `assignments`.

    Of runs, also the folders with the settings of the run. Links in the paths are resolved.
    """
    used = set()
    in_runs = {(name, changes) for _, argument, changes in _runs(workspace) for name in config.split_argument(argument)}
    names = {*config.recipe_names(), *(name for name, _ in in_runs)}
    changed = {(name, tuple(changes)) for name in names for changes in ((), assignments)}
    for name, changes in changed | in_runs | set(_compared_recipes(workspace)):
        try:
            workflow = Workflow(stages, workspace, (config.load_recipe(name, changes),))
        except ConfigError:  # a file that is gone, or a setting that contradicts this recipe
            continue
        for stage in stages.values():
            if stage.folder:
                folder = workflow.folder(stage)
                used |= {folder, publishing.published_dir(folder)}
    return used


def _compared_recipes(workspace: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The recipes of the comparisons in the workspace, with the values of --set, also as trained on all rows."""
    for path in (workspace / "data" / "compare").glob(f"*/{store.CONTEXT}"):
        context = store.read_json(path, schemas.Context) or {}
        changes = tuple(context.get("assignments", ()))
        for name in config.expand_recipes(context.get("recipe", "")):
            yield from ((name, changes), (name, (*changes, "train.fit_all=true")))


def _referenced_networks(data: Path) -> set[str]:
    """The folder names of the networks that a finished or interrupted stage refers to."""
    names = set()
    for pattern in ("runs/**/train*", "compare/*", "generated/**/*"):
        for folder in data.glob(pattern):
            manifest, _ = store.read_manifest(folder)
            names |= {network["folder"] for network in manifest["numbers"].get("networks", ())} if manifest else set()
            names |= {*(store.read_json(folder / store.REFERENCES, schemas.References) or {"folders": ()})["folders"]}
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
            used.add(folder.resolve())
    return used


def remove(path: Path) -> None:
    """Delete a file, or what the pipeline wrote in a folder, which is deleted too if nothing else is there."""
    if path.is_dir() and not path.is_symlink():
        store.delete_own(path)
        with contextlib.suppress(OSError):
            path.rmdir()
    else:
        path.unlink(missing_ok=True)

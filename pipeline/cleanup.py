"""Files in the workspace that nothing uses any more: cached data, networks, and what interrupted runs left."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import config, store
from pipeline.config import ConfigError
from pipeline.declarations import Stage
from pipeline.workflow import Workflow


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
            contexts.append((path.parent.parent.relative_to(runs).as_posix(), store.read_json(path) or {}))
    for path in sorted(generated.rglob(store.CONTEXT)):
        name = path.parent.relative_to(generated).as_posix().removesuffix(".partial").removesuffix(".previous")
        contexts.append((name, store.read_json(path) or {}))
    for name, context in contexts:
        argument = context.get("recipe") if "+" in name else context.get("recipe_file")
        assignments = context.get("assignments")
        changes = tuple(map(str, assignments)) if isinstance(assignments, list) else ()
        yield name, argument if isinstance(argument, str) and argument else name, changes


def find_unused(workspace: Path, stages: Mapping[str, Stage], assignments: Sequence[str]) -> list[Path]:
    """Files and folders that `--clean` removes, in order: no finished run, nothing that can resume, no submission.

    assignments: the values of --set: data that the recipes use with these settings counts as used.
    """
    used = _used_by_recipes(workspace, stages, assignments)
    data, submissions = workspace.resolve() / "data", workspace.resolve() / "submissions"
    for name in _referenced_networks(data):
        for ending in ("", ".partial", ".previous", ".lock"):
            used.add((data / "networks" / f"{name}{ending}").resolve())
    used |= _used_features(data)
    cached = [
        path for name in ("prepared/splits", "augmented", "networks", "features") for path in (data / name).glob("*")
    ]
    interrupted = [
        path
        for folder in (data, submissions)
        for path in folder.rglob("*.partial")
        if path.name != "train.partial" and path.parent != data / "compare" and data / "generated" not in path.parents
    ]
    temporary = [path for folder in (data, submissions) for path in folder.rglob(".*.tmp")]
    unused = sorted({path for path in (*cached, *interrupted, *temporary) if path.resolve() not in used})
    return [path for path in unused if not any(parent in unused for parent in path.parents)]


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
                used |= {folder, store.published_dir(folder)}
    return used


def _compared_recipes(workspace: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The recipes of the comparisons in the workspace, with the values of --set, also as trained on all rows."""
    for path in (workspace / "data" / "compare").glob(f"*/{store.CONTEXT}"):
        context = store.read_json(path) or {}
        if isinstance(context.get("recipe"), str) and isinstance(context.get("assignments"), list):
            changes = tuple(map(str, context["assignments"]))
            for name in config.expand_recipes(context["recipe"]):
                yield from ((name, changes), (name, (*changes, "train.fit_all=true")))


def _referenced_networks(data: Path) -> set[str]:
    """The folder names of the networks that a finished or interrupted stage refers to."""
    names = set()
    for pattern in ("runs/**/train*", "compare/*", "generated/**/*"):
        for folder in data.glob(pattern):
            manifest, _ = store.read_manifest(folder)
            names |= _folder_names((manifest or {}).get("numbers"))
            names |= _folder_names(store.read_json(folder / store.REFERENCES))
    return names


def _used_features(data: Path) -> set[Path]:
    """The features of the present images that belong to referenced networks, or to interrupted work."""
    manifests = [store.read_manifest(path.parent)[0] or {} for path in data.glob(f"prepared/*/{store.MANIFEST}")]
    images = {digest for manifest in manifests for digest in manifest.get("outputs", {}).values()}
    extractors, is_training = set(), False
    for name in _referenced_networks(data):
        manifest, _ = store.read_manifest(store.published_dir(data / "networks" / name))
        is_training |= manifest is None  # which features it uses is recorded at the end
        extractors.add((manifest or {"numbers": {}})["numbers"].get("extractor"))
    used = set()
    for folder in data.glob("features/*"):
        is_partial = folder.name.endswith(".partial")
        key = store.read_json(folder / store.STARTED) if is_partial else store.read_manifest(folder)[0]
        inputs = (key or {}).get("inputs", {})
        if inputs.get("images") in images and (is_partial or is_training or inputs.get("extractor") in extractors):
            used.add(folder.resolve())
    return used


def _folder_names(references: Any) -> set[str]:
    """The network folders in a manifest's numbers or in a file of references."""
    if not isinstance(references, dict):
        return set()
    entries = [network.get("folder") for network in references.get("networks", ()) if isinstance(network, dict)]
    return {name for name in (*entries, *references.get("folders", ())) if isinstance(name, str)}


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""download: fetch raw data into `data/raw`, or register the files that the user put there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.dataset import fetch, files, sources
from pipeline.dataset.files import SourceError
from pipeline.kaggle import client
from pipeline.workflow import publishing, schemas, store
from pipeline.workflow.context import StageContext
from pipeline.workflow.store import FORMAT, Manifest


def run(context: StageContext) -> None:
    """Publish what the source provides, with a manifest that records the source."""
    raw = context.published_dir
    own_files = sources.find_user_files(raw)
    if own_files:
        _register(context, raw, own_files)
        return
    earlier, _ = store.read_manifest(raw)
    _require_only_downloads(raw, earlier)
    data = _choose_source(context, raw, earlier)
    if data is None:
        return
    staging, inputs = publishing.create_staging_dir(raw), {}
    if data in sources.NAMES:
        numbers = fetch.FETCHERS[data](staging)
    else:
        inputs = sources.hash_path(data)
        numbers = fetch.fetch_path(data, staging)
        if sources.hash_path(data) != inputs:
            raise SourceError(f"{data} changed while it was read; nothing was published, run the stage again")
        context.environment["path"] = str(Path(data).absolute())
    if "test_rows_from_train" in numbers:
        context.say(
            f"no test rows in {data}: {numbers['test_rows_from_train']:,} of the training rows are used instead"
        )
    names = sorted({path.name for path in store.own_files(staging)}.difference(store.LISTS))
    store.write_manifest(staging, _key(inputs), names, numbers, context.environment)
    publishing.publish(raw)


def _key(inputs: dict[str, str]) -> dict[str, Any]:
    return {"format": FORMAT, "stage": "download", "inputs": inputs}


def _register(context: StageContext, raw: Path, own_files: list[Path]) -> None:
    """Write a manifest for the user's own files. Raises SourceError if --data requests other data."""
    if context.run.data != "auto":
        names = ", ".join(path.name for path in own_files)
        raise SourceError(
            f"{raw} contains your own files ({names}), which a download does not overwrite: "
            "move them elsewhere, or omit --data"
        )
    tables = sources.require_user_tables(raw, own_files)
    used = sorted({table.path.name for table in tables.values()})
    manifest, _ = store.read_manifest(raw)
    changed = store.changed_outputs(raw, manifest, rehash=False) if manifest else {}
    if manifest and manifest["numbers"].get("source") == "files":
        if damaged := store.changed_outputs(raw, manifest).keys() - changed.keys():
            raise SourceError(
                f"{raw / min(damaged)}: its content changed, but not its size and time, as after a fault of the disk: "
                "restore it from a copy, or save it again if its content is right"
            )
    elif manifest:
        # The user's files replace those of an earlier download, which are deleted before its manifest is.
        own = {path.name for path in own_files}
        store.delete_own(raw, {store.MANIFEST, store.CONTEXT, store.WRITTEN, *changed, *own})
    store.write_list(raw, {store.MANIFEST, store.CONTEXT} & store.own_names(raw))
    store.write_manifest(raw, _key({}), used, {"source": "files"}, context.environment)


def _choose_source(context: StageContext, raw: Path, earlier: Manifest | None) -> str | None:
    """The source to fetch from: a name or a path; None if the earlier download is intact."""
    data = context.run.data
    source = earlier["numbers"].get("source") if earlier else None
    if data != "auto":
        return data
    if source == "files" and earlier:  # a sample in their place would replace what was made from them
        raise SourceError(
            f"{raw}: your files are missing ({', '.join(sorted(earlier['outputs']))}): put them back, or choose a "
            "source with --data"
        )
    if not earlier:
        attached = sources.find_attached()
        if attached:
            context.say(f"reading {attached}")
            return str(attached)
        has_credentials, problem = client.find_credentials()
        if problem:
            context.say(f"no data from Kaggle: {problem}")
        return "kaggle" if has_credentials else "sample"
    if not (store.changed_outputs(raw, earlier) or context.run.force):
        return None
    if source in sources.NAMES:
        return str(source)
    path = (store.read_json(raw / store.CONTEXT, schemas.Context) or {}).get("path")
    if not path:
        raise SourceError(f"{raw}: the path of the data is not recorded any more; pass it with --data")
    return str(path)


def _require_only_downloads(raw: Path, earlier: Manifest | None) -> None:
    """Raise SourceError if `data/raw`, which a download replaces, contains anything but a download's files."""
    known = {*(earlier["outputs"] if earlier else ()), store.MANIFEST, store.CONTEXT}
    others = sorted(path for path in raw.glob("*") if path.name not in known and not path.name.startswith("."))
    if others:
        raise SourceError(
            f"{raw} contains {others[0].name}, which is not train.csv, test.csv, sample_submission.csv or a zip of "
            f"them: move it elsewhere; if it is the data, pass its path with --data{files.advise(others)}"
        )

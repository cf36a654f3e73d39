"""download: bring raw data into `data/raw`, or take note of the files that a person put there."""

from pathlib import Path

from pipeline import artifacts, competition, sources

SPACE = {"sample": 16 << 20, "kaggle": 32 << 20, "openml": 256 << 20}  # bytes: of 9, 16 and 130 MB


def space(job):
    """Bytes that `run` writes at most: Kaggle's zip, or tables that are made, or a copy."""
    data = job.call.data
    if data in ("auto", *sources.NAMED):
        return 0 if sources.persons_files(job.place) else SPACE.get(data, SPACE["kaggle"])
    return sources.space(data)


def run(job):
    """Publish what the source gives, with a manifest that records which source it was."""
    raw, data = job.place, job.call.data
    mine = sources.persons_files(raw)
    if mine and data == "auto":
        tables = sources.require_persons_tables(raw, mine)
        used = sorted({path.name for path, _ in tables.values()})
        _remove_earlier_download(raw, mine)
        artifacts.write_manifest(raw, job.key, used, {"source": "files"}, job.context)
        return
    if mine:
        names = ", ".join(path.name for path in mine)
        raise sources.SourceError(
            f"{raw} holds files of your own ({names}), and no download overwrites them: "
            "move them away, or leave out --data"
        )

    earlier, _ = artifacts.read_manifest(raw)
    _require_nothing_else(raw, earlier)
    source = earlier["numbers"].get("source") if earlier else None
    if data == "auto" and source == "files":  # the sample in their place would overwrite what was made of them
        raise sources.SourceError(
            f"{raw}: your files are gone ({', '.join(sorted(earlier['outputs']))}): put them back, or say with --data "
            "where data come from"
        )
    if data == "auto" and not earlier:
        data = "kaggle" if competition.has_credentials() else "sample"
    elif data == "auto":
        current = earlier["version"] == job.key["version"] and not sources.is_old_sample(earlier)
        if current and not artifacts.changed_outputs(raw, earlier) and not job.call.force:
            return  # nothing to mend
        data = (
            source if source in sources.NAMED else str((artifacts.read_json(raw / artifacts.CONTEXT) or {}).get("path"))
        )

    partial = artifacts.begin(raw)
    if data in sources.NAMED:
        numbers = {"kaggle": sources.from_kaggle, "openml": sources.from_openml, "sample": sources.from_sample}[data](
            partial
        )
    else:
        job.key["inputs"] = sources.hash_path(data)
        numbers = sources.from_path(data, partial)
        if sources.hash_path(data) != job.key["inputs"]:
            raise sources.SourceError(f"{data} changed while it was read: nothing was published, run it again")
        job.context["path"] = str(Path(data).absolute())
    names = sorted(path.name for path in partial.iterdir())
    artifacts.write_manifest(partial, job.key, names, numbers, job.context)
    artifacts.publish(raw)


def _require_nothing_else(raw, earlier):
    """A download replaces `data/raw`: what it would delete there must be a download's. Raises SourceError."""
    ours = {*(earlier["outputs"] if earlier else ()), artifacts.MANIFEST, artifacts.CONTEXT}
    others = sorted(path.name for path in raw.glob("*") if path.name not in ours and not path.name.startswith("."))
    if others:
        raise sources.SourceError(
            f"{raw} holds {others[0]}, which is none of train.csv, test.csv, sample_submission.csv or a zip of them: "
            "move it elsewhere, and if it is the data, say where with --data"
        )


def _remove_earlier_download(raw, mine):
    """A person's files win: what a download left beside them goes, before the manifest that knows it does."""
    manifest, _ = artifacts.read_manifest(raw)
    if manifest and manifest["numbers"].get("source") != "files":
        for name in set(manifest["outputs"]) - {path.name for path in mine}:
            (raw / Path(name).name).unlink(missing_ok=True)

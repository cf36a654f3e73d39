"""publishing: links and folders of the user in place of the folders of a result, and in them."""

import os

import pytest

from pipeline.workflow import publishing, store
from tests import toy_stages


def stage(folder, content):
    """Write a result that is ready to be published; returns its folder."""
    staging = publishing.create_staging_dir(folder)
    store.write(staging / "weights", content)
    store.write_manifest(staging, {"stage": "toy", "inputs": {}}, ["weights"], {}, {})
    return staging


def publish_again(folder, content):
    """What a stage does when the same command is repeated."""
    publishing.restore(folder)
    stage(folder, content)
    publishing.publish(folder)
    assert (folder / "weights").read_bytes() == content and not folder.is_symlink()


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("to", ["X.partial", "empty", "file", "missing", "itself"])
@pytest.mark.parametrize("name", ["X", "X.partial", "X.previous"])
def test_links_in_place_of_the_folders_of_a_result(name, to, tmp_path):
    folder, outside = tmp_path / "X", tmp_path / "outside"
    stage(outside / "X", b"of another workspace")
    (outside / "empty").mkdir()
    (outside / "file").write_text("mine")
    before = files_in(outside)
    (tmp_path / name).symlink_to(name if to == "itself" else outside / to)
    for content in (b"first", b"second", b"third"):
        publish_again(folder, content)
    kept = "X.kept" if name == "X" else name
    assert names(tmp_path) == {"X", "outside", kept} and (tmp_path / kept).is_symlink()
    assert files_in(outside) == before and names(outside) == {"X.partial", "empty", "file"}


@pytest.mark.parametrize("kind", ["absolute", "relative", "chain", "within"])
@pytest.mark.parametrize("linked", ["data", "data/right", "data/left"])
def test_a_linked_folder_is_published_again_and_again_where_the_link_leads(linked, kind, tmp_path):
    workspace = tmp_path / "workspace"
    target = workspace / "disk/folder" if kind == "within" else tmp_path / "disk/folder"
    for folder in (target, (workspace / linked).parent):
        folder.mkdir(parents=True, exist_ok=True)
    (target / "note").write_text("mine")
    (workspace / "in.txt").write_text("a")
    (tmp_path / "hop").symlink_to(target)
    ends = {"relative": os.path.relpath(target, (workspace / linked).parent), "chain": tmp_path / "hop"}
    (workspace / linked).symlink_to(ends.get(kind, target))
    for seed in range(3):
        toy_stages.run_all(toy_stages.make_workflow(workspace, seed, force=True))
        assert toy_stages.contents(workspace) == toy_stages.expected(workspace, seed, 0)
        assert (workspace / linked).is_symlink() and (target / "note").read_text() == "mine"
        assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_a_folder_whose_list_is_a_link_is_the_users(tmp_path):
    """As in a copy of a workspace that consists of links: `cp -rs`."""
    other = stage(tmp_path / "other", b"of another workspace")
    before = files_in(other)
    for name in ("X", "X.partial"):
        (tmp_path / name).mkdir()
        for path in other.iterdir():
            (tmp_path / name / path.name).symlink_to(path)
    store.write(tmp_path / "X/receipt", b"new")
    for content in (b"first", b"second"):
        publish_again(tmp_path / "X", content)
    assert files_in(other) == before
    assert all((tmp_path / "X.partial" / path.name).is_symlink() for path in before)


@pytest.mark.parametrize("place", ["X", "X.partial", "X.previous"])
@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "weights", *store.LISTS, *(f".{name}.PID.tmp" for name in store.LISTS)]
)
def test_folders_of_the_user_in_those_of_a_result_do_not_block_publishing(name, place, tmp_path, monkeypatch):
    folder, name = tmp_path / "X", name.replace("PID", str(os.getpid()))
    publish_again(folder, b"first")
    stage(folder, b"second")
    if place == "X.previous":  # the process was killed before the old result was deleted
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "restore", lambda folder: None)
            publishing.publish(folder)
        stage(folder, b"third")
    mine = tmp_path / place / name
    mine.unlink(missing_ok=True)
    mine.mkdir()
    (mine / "note").write_text("mine")
    for content in (b"fourth", b"fifth"):
        publish_again(folder, content)
    assert [path.read_text() for path in tmp_path.rglob("note")] == ["mine"]


def test_a_file_of_the_user_with_the_name_of_an_earlier_temporary_file(tmp_path):
    folder, name = tmp_path / "X", f".weights.{os.getpid()}.tmp"
    publish_again(folder, b"first")
    (folder / name).write_text("mine")
    publish_again(folder, b"second")
    assert (folder / name).read_text() == "mine"

"""--clean in workspaces with links: nothing is deleted through them, and what they lead to is in use."""

import os
import shutil

import pytest

from pipeline.cli import cleanup
from pipeline.errors import StageError
from pipeline.training import imagenet
from pipeline.workflow import publishing, store
from tests.conftest import TINY

PLACES = sorted({place.removesuffix("/**") for place in (*cleanup.PLACES, *cleanup.RESUMED, imagenet.FOLDER)})


@pytest.fixture
def few_recipes(monkeypatch):
    """`--clean` reads a single built-in recipe."""
    monkeypatch.setattr("pipeline.recipes.config.recipe_names", lambda: ["quick"])


def content(folder):
    """All bytes and links in a folder."""
    paths = [*folder.rglob("*")]
    return {path: os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes() for path in paths}


def make_unused(folder):
    """What another workspace has in such a folder: results, an interrupted one, locks, incomplete files."""
    for name in ("net-0123456789ab", "0123456789ab", "mine"):
        result = folder / name
        result.mkdir(parents=True)
        store.write_list(result, ())
        store.write(result / "weights", b"weights")
        store.write_manifest(result, {"stage": "train", "inputs": {}}, ["weights"], {}, {})
        store._add_to_list(result / ".weights.7.tmp")
        (result / ".weights.7.tmp").write_bytes(b"half")
    store.write_json(publishing.create_staging_dir(folder / "net-0123456789ac") / store.STARTED, {})
    (folder / "net-0123456789ad.lock").touch()
    (folder / f"{next(iter(imagenet.FILES.values()))}.{'f' * 32}.partial").write_bytes(b"half")


def link(path, target, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "chain":
        (target.parent / "hop").symlink_to(target.name)
    ends = {"absolute": target, "relative": os.path.relpath(target, path.parent), "chain": target.parent / "hop"}
    path.symlink_to(ends[kind])


@pytest.mark.parametrize("within", [False, True], ids=["outside", "within"])
@pytest.mark.parametrize("kind", ["absolute", "relative", "chain"])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_deleted_through_a_link(place, kind, within, command, few_recipes, tmp_path):
    workspace = tmp_path / "workspace"
    target = workspace / "disk/folder" if within else tmp_path / "disk/folder"
    folders = [path for path in PLACES if path == place or path.startswith(f"{place}/")]
    for folder in folders:
        make_unused(target / os.path.relpath(folder, place))
    link(workspace / place, target, kind)
    before = content(target)
    for options in ((), ("--yes",)):
        run = command("--clean", *options, "--workspace", workspace)
        assert run.out.splitlines() == [
            f"not cleaned: {workspace / place} is a link to {os.readlink(workspace / place)}",
            "nothing is unused",
        ]
    after = content(target)
    assert {path: after.get(path) for path in before} == before
    # The same folders are cleaned where they are.
    (workspace / place).unlink()
    shutil.copytree(target, workspace / place)
    run = command("--clean", "--yes", "--workspace", workspace)
    assert run.code == 0 and run.out.count("deleting ") >= len(folders)


@pytest.mark.parametrize("to", ["itself", "missing", "folder", "file"])
def test_links_among_cached_results_stay_and_the_others_are_deleted(to, command, few_recipes, tmp_path):
    networks, outside = tmp_path / "workspace/data/networks", tmp_path / "outside"
    make_unused(outside / "folder")
    (outside / "file").touch()
    make_unused(networks)
    (networks / "mine/.weights.7.tmp").unlink()
    links = [
        networks / name for name in ("net-abcdefabcdef", "net-abcdefabcdef.lock", "net-abcdefabcdef.partial", "any")
    ]
    for path in (*links, networks / "mine/.weights.7.tmp"):
        path.symlink_to(path.name if to == "itself" else outside / to)
    before = content(outside)
    run = command("--clean", "--yes", "--workspace", tmp_path / "workspace")
    assert run.code == 0 and content(outside) == before
    assert all(path.is_symlink() for path in links)
    assert {path for path in networks.iterdir() if store.own_names(path)} == {networks / "mine"}


@pytest.mark.parametrize("place", cleanup.CACHES)
def test_folders_that_only_have_the_name_of_a_result_stay(place, command, few_recipes, tmp_path):
    folders = [tmp_path / place / name for name in ("0123456789ab", "photos-0123456789ab", "abcdefabcdef.partial")]
    for folder in folders:
        (folder / "sub").mkdir(parents=True)
        (folder / "sub/weights").write_text("mine")
    (tmp_path / place / "empty-0123456789ab").mkdir()
    (tmp_path / place / "notes-0123456789ab.lock").write_text("mine")
    run = command("--clean", "--yes", "--workspace", tmp_path)
    assert run.code == 0 and run.out == "nothing is unused\n"
    assert all((folder / "sub/weights").read_text() == "mine" for folder in folders)
    assert (tmp_path / place / "empty-0123456789ab").is_dir()


@pytest.mark.parametrize("linked", ["data/runs", "data/runs/quick", "data/runs/quick/train"])
def test_the_networks_of_a_linked_run_are_in_use(linked, command, tiny, tmp_path):
    shutil.move(tiny / linked, tmp_path / "elsewhere")
    (tiny / linked).symlink_to(tmp_path / "elsewhere")
    run = command("--clean", "--yes", "--workspace", tiny)
    assert run.code == 0 and run.lines()[-1] == "nothing is unused"
    assert cleanup.recipes_with_runs(tiny) == ["quick"]
    assert "train     fresh" in command("--status", *TINY, "--workspace", tiny).out


def test_a_run_on_a_disk_that_is_not_mounted(command, tiny):
    shutil.rmtree(tiny / "data/runs/quick")
    (tiny / "data/runs/mine").symlink_to("/not/mounted")
    run = command("--clean", "--yes", "--workspace", tiny)
    assert run.code == 2 and run.err.startswith(f"error: {tiny}/data/runs/mine is a link to /not/mounted, which does")
    assert len(list((tiny / "data/networks").glob("layers-*/weights.safetensors"))) == 1


def test_links_that_lead_in_circles_are_searched_once(tmp_path):
    for path in ("a/b", "c"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "name").touch()
    for path, target in (("a/up", ".."), ("a/b/c", "../../c"), ("c/a", "../a"), ("c/self", "."), ("loop", "loop")):
        (tmp_path / path).symlink_to(target)
    (tmp_path / "also c").symlink_to("c")
    assert cleanup._files_called("name", tmp_path) == [tmp_path / "a/b/name", tmp_path / "c/name"]
    assert cleanup._files_called("name", tmp_path / "also c") == [
        tmp_path / "also c/a/b/name",
        tmp_path / "also c/name",
    ]
    assert cleanup._files_called("name", tmp_path / "missing") == []


def test_a_workspace_that_is_a_link(command, few_recipes, tmp_path):
    make_unused(tmp_path / "workspace/data/networks")
    (tmp_path / "link").symlink_to("workspace")
    run = command("--clean", "--yes", "--workspace", tmp_path / "link")
    assert run.code == 0 and f"deleting {tmp_path}/workspace/data/networks/net-0123456789ab\n" in run.out
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StageError, match="is a link to loop, which does not exist"):
        cleanup.find_unused(tmp_path / "loop", ())

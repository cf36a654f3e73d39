"""Files of the user in the workspace: whatever runs, fails or is cleaned, each keeps its bytes and its name."""

import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.cli import cleanup
from pipeline.workflow import publishing, store
from tests import toy_stages
from tests.conftest import TINY, stop_after_epoch, write_tables
from tests.interference import Points

CACHED = "data/networks/net-0123456789ab"  # a network that nothing refers to
FOLDERS = (*(str(Path(output).parent) for output in toy_stages.OUTPUTS.values()), CACHED)
PLACES = [
    *(f"{folder}{ending}" for folder in FOLDERS for ending in ("", ".partial", ".previous", "/sub", ".partial/sub")),
    *("data", "data/raw", "data/networks", "data/augmented", "data/mine.partial", "submissions"),
]
UNUSUAL = [
    "-rf",
    "a b",
    "a: b",
    "'\"",
    "line\nbreak",
    "\U0001f600",
    "n" * 250,
    "n.kept",
    "thesis.partial",
    ".ipynb_checkpoints",
    "x.previous",
]
TEMPORARY = [".notes.tmp", ".copy.txt.tmp", ".a.csv.7.tmp", "...5.tmp", ".staged-by-pipeline.7.tmp2", ".left.txt.5.tmp"]
OWN = ["manifest.json", "context.json", "started.json", "networks.json", "left.txt", "copy.txt", "right.txt", "weights"]
OWN += ["log.txt", "checkpoint.pt", "net-0123456789ab.lock", "sub", "part-00000.npy"]
THIS_PROCESS = [f".{name}.{os.getpid()}.tmp" for name in ("left.txt", "manifest.json", "weights")]  # what `write` uses
NOT_UTF8 = [os.fsdecode(b"\xff\xfe")] if sys.platform == "linux" else []
NAMES = st.one_of(
    st.sampled_from([*UNUSUAL, *TEMPORARY, *THIS_PROCESS, *OWN, *NOT_UTF8]),
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=20),
)


class Killed(BaseException):
    """The process does not exist any more."""


class Kill(Points):
    """From a point on, every call that would change the disk fails: no handler can tidy up, as after `kill -9`."""

    def __init__(self, at):
        super().__init__()
        self.limit = at

    def passed(self, point, path):
        super().passed(point, path)
        if self.count > self.limit:
            raise Killed


def plain(path):
    """A path without what publishing may add: X for X.partial and X.previous, NAME for NAME.kept."""
    parts = []
    for part in Path(path).parts:
        if "/".join([*parts, re.sub(r"\.(partial|previous)\d*$", "", part)]) in FOLDERS:
            part = re.sub(r"\.(partial|previous)\d*$", "", part)
        parts.append(re.sub(r"\.kept\d*$", "", part)[:200])
    return "/".join(parts)


class ForeignFiles(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.top = Path(tempfile.mkdtemp()).resolve()
        self.workspace = self.top / "workspace"
        (self.top / "outside").mkdir()
        (self.top / "outside/file").write_text("outside")
        self.workspace.mkdir()
        (self.workspace / "in.txt").write_text("a")
        self.seed, self.count, self.files, self.links = 0, 0, {}, {}

    def teardown(self):
        if hasattr(self, "top"):
            self.run_all(force=True)
            self.everything_is_there()
            self.clean()
            self.everything_is_there()
            assert toy_stages.contents(self.workspace) == toy_stages.expected(self.workspace, self.seed, 0)
            shutil.rmtree(self.top)

    def place(self, place, name):
        """Where the user can put a file of his own; None if it would be a file of the pipeline's there."""
        folder = self.workspace / place
        if len(os.fsencode(name)) > 255 or name in (".", "..", *store.LISTS):
            return None
        if any(path.is_symlink() for path in (folder, *folder.parents)):  # then the file would be outside the workspace
            return None
        family = next((f for f in (folder, *folder.parents) if store.own_names(f)), folder)
        if (folder / name).relative_to(family).as_posix() in store.own_names(family):
            return None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # below a file
            return None
        return None if os.path.lexists(folder / name) else folder / name

    @rule(place=st.sampled_from(PLACES), name=NAMES, inner=st.sampled_from(("", "", "manifest.json", "a b")))
    def put(self, place, name, inner):
        """A file, or a folder with a file."""
        if path := self.place(place, name):
            self.count += 1
            if inner:
                path.mkdir()
                path /= inner
            path.write_text(f"file {self.count}")
            self.files[f"file {self.count}"] = path.relative_to(self.workspace)

    @rule(place=st.sampled_from(PLACES), name=NAMES, to=st.sampled_from(("outside", "outside/file", "missing", "")))
    def put_link(self, place, name, to):
        if path := self.place(place, name):
            self.count += 1
            target = f"{self.top}/{'./' * self.count}{to}" if to else f"{'./' * self.count}{name}"  # to itself
            path.symlink_to(target)
            self.links[target] = path.relative_to(self.workspace)

    @rule(folder=st.sampled_from(FOLDERS), ending=st.sampled_from((".partial", ".previous")))
    def copy(self, folder, ending):
        """The user copies a result to a name that the pipeline would use."""
        source, target = self.workspace / folder, self.workspace / f"{folder}{ending}"
        if source.is_dir() and not os.path.lexists(target) and not publishing.is_staged(source):
            shutil.copytree(source, target, symlinks=True)
            for path in target.rglob("*"):
                if path.is_file() and not path.is_symlink() and path.name not in store.LISTS:
                    self.count += 1
                    path.write_text(f"file {self.count}")
                    self.files[f"file {self.count}"] = path.relative_to(self.workspace)

    def make_workflow(self, force):
        return toy_stages.make_workflow(self.workspace, self.seed, 0, force)

    @rule(force=st.booleans())
    def run_all(self, force):
        toy_stages.run_all(self.make_workflow(force))
        assert toy_stages.contents(self.workspace) == toy_stages.expected(self.workspace, self.seed, 0)
        for output in toy_stages.OUTPUTS.values():
            folder = (self.workspace / output).parent
            for path in filter(publishing.is_staged, folder.parent.glob(f"{folder.name}*")):
                # What a killed --force left beside a fresh result stays until the stage runs again, or --clean.
                assert ".partial" in path.name and not force, path

    @rule(at=st.integers(0, 250), force=st.booleans())
    def kill(self, at, force):
        self.until_killed(at, toy_stages.run_all, self.make_workflow(force))

    @rule(at=st.integers(0, 100))
    def kill_a_cached_network(self, at):
        self.until_killed(at, self.train, self.workspace / CACHED)

    @rule(at=st.integers(0, 20))
    def kill_clean(self, at):
        self.until_killed(at, self.clean)

    def until_killed(self, at, function, *arguments):
        try:
            with Kill(at):
                function(*arguments)
        except Killed:
            pass

    def train(self, folder):
        publishing.restore(folder)
        staging = publishing.create_staging_dir(folder)
        for name in ("weights", "log.txt", "checkpoint.pt"):
            store.write(staging / name, b"pipeline")
        store.write_manifest(staging, {}, ["weights"], {}, {})
        publishing.publish(folder, ["log.txt"])

    @rule()
    def clean(self):
        for path in cleanup.find_unused(self.workspace, ()):
            cleanup.remove(path)

    @rule()
    def edit_settings(self):
        self.seed += 1

    @rule(output=st.sampled_from([*toy_stages.OUTPUTS.values(), f"{CACHED}/weights"]), both=st.booleans())
    def damage_the_manifest(self, output, both):
        folder = (self.workspace / output).parent
        names = store.own_names(folder)
        for name in (store.MANIFEST, *[store.CONTEXT] * both):
            if name in names and (folder / name).is_file():
                (folder / name).write_text("{")

    @invariant()
    def everything_is_there(self):
        if not hasattr(self, "top"):
            return
        texts, links = {}, {}
        for parent, folders, files in os.walk(self.workspace):
            for path in (Path(parent, name) for name in (*files, *folders)):
                if path.is_symlink():
                    links.setdefault(os.readlink(path), []).append(path.relative_to(self.workspace))
                elif path.is_file():
                    texts.setdefault(path.read_bytes().decode(), []).append(path.relative_to(self.workspace))
        for present, expected in ((texts, self.files), (links, self.links)):
            for content, path in expected.items():
                assert content in present, f"{path} is lost"
                assert plain(path) in map(plain, present[content]), f"{path} is at {present[content]}"
        assert (self.top / "outside/file").read_text() == "outside"


@pytest.fixture(autouse=True, scope="module")
def few_recipes():
    """`--clean` reads a single built-in recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.recipes.config.recipe_names", lambda: ["quick"])
        yield


class TestForeignFiles(ForeignFiles.TestCase):
    settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


@pytest.mark.slow
class TestForeignFilesLonger(ForeignFiles.TestCase):
    settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


# On the command line


def put(*paths):
    """Write a file of the user's at each path; returns a function that checks that they are unchanged."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {path.name}")

    def check():
        for path in paths:
            assert path.read_text() == f"mine: {path.name}"

    return check


def test_clean_deletes_no_file_of_the_user(command, tiny, tmp_path):
    (network,) = (tiny / "data/networks").glob("layers-*[0-9a-f]")
    check = put(
        tiny / "data/raw/digit-recognizer.zip.partial",
        tiny / "data/mystuff/thesis.partial/chapter",
        tiny / "data/.notes.tmp",
        tiny / "data/runs/quick/mine.partial/note",
        tiny / "data/networks/mine/.weights.safetensors.5.tmp",
        tiny / "data/networks/0123456789ab/note",
        tiny / "data/pretrained/mine.partial",
        tiny / "submissions/old.partial/submission.csv",
        tiny / "submissions/quick/.mine.5.tmp",
        tmp_path / "elsewhere/file",
    )
    (tiny / "data/networks/abcdefabcdef").symlink_to(tmp_path / "elsewhere")
    shutil.copytree(network, tiny / "data/networks/backup")
    clean = ("--clean", "--workspace", tiny)
    assert command(*clean).out == "nothing is unused\n"
    assert command(*clean, "--yes").code == 0
    check()
    assert (tiny / "data/networks/backup/weights.safetensors").exists()


@pytest.mark.parametrize("damaged", [False, True], ids=["intact", "damaged"])
def test_clean_keeps_files_of_the_user_in_what_it_deletes(command, stage, tiny, tmp_path, damaged):
    (network,) = (tiny / "data/networks").glob("layers-*[0-9a-f]")
    check = put(network / "note.txt", network / "sub/note.txt", network / "checkpoint.pt", tmp_path / "elsewhere/file")
    (network / "link").symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(tiny / "data/runs")
    if damaged:
        (network / store.MANIFEST).write_text("{")
        (network / store.CONTEXT).write_text("{")
    (tiny / "data/pretrained").mkdir()
    download = tiny / f"data/pretrained/vgg16-397923af.pth.{32 * 'f'}.partial"  # by torch.hub
    download.write_bytes(b"half")
    clean = ("--clean", "--workspace", tiny)
    listed = {line.removeprefix("unused: ") for line in command(*clean).lines()[:-1]}
    assert {str(network / "weights.safetensors"), str(network / "log.txt"), str(download)} <= listed
    assert str(network) not in listed and str(network / "note.txt") not in listed
    assert command(*clean, "--yes").code == 0
    check()
    assert {path.name for path in network.iterdir()} == {"note.txt", "sub", "checkpoint.pt", "link"}
    assert command(*clean).out == "nothing is unused\n"


def test_publishing_keeps_files_of_the_user(stage, tiny, tmp_path):
    folder = tiny / "submissions/quick"
    check = put(folder / "note.txt", folder / "sub/note.txt", folder / ".hidden", tmp_path / "elsewhere/file")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    before = (folder / "submission.csv").stat().st_ino
    assert stage("predict", "--force").code == 0
    assert (folder / "submission.csv").stat().st_ino != before
    check()
    assert os.readlink(folder / "link") == str(tmp_path / "elsewhere")
    assert [path.name for path in folder.parent.iterdir()] == ["quick"]


def test_results_of_an_earlier_version_have_no_list(stage, tiny):
    folder = tiny / "submissions/quick"
    (folder / store.WRITTEN).unlink()
    check = put(folder / "note.txt")
    assert stage("predict", "--force").code == 0
    check()
    assert not list(folder.glob("submission.csv.kept"))


def test_names_of_the_pipeline_that_the_user_gave(stage, tiny):
    """A copy of a result beside it, and files where the pipeline makes folders."""
    folder = tiny / "submissions/quick"
    check = put(tiny / "data/runs/quick/evaluate.partial", tiny / "data/runs/quick/evaluate.previous")
    copies = [Path(shutil.copytree(folder, f"{folder}.{ending}")) for ending in ("previous", "partial", "previous2")]
    for copy in copies:
        (copy / "submission.csv").write_text("mine")
    assert stage("all", "--force").code == 0
    check()
    for copy in copies:
        assert (copy / "submission.csv").read_text() == "mine"
    names = {"quick", "quick.previous", "quick.partial", "quick.previous2"}
    assert {path.name for path in folder.parent.iterdir()} == names


def test_a_file_in_place_of_a_folder_of_results_moves_aside(stage, tiny):
    shutil.rmtree(tiny / "submissions/quick")
    put(tiny / "submissions/quick")
    assert stage("predict").code == 0
    assert (tiny / "submissions/quick/submission.csv").exists()
    assert (tiny / "submissions/quick.kept").read_text() == "mine: quick"


def test_what_the_user_puts_into_an_interrupted_run_is_published_with_it(stage, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_epoch(patch)
        assert stage("train", "--set", "train.epochs=3").code == 130
    (network,) = (tiny / "data/networks").glob("*.partial")
    for partial in (network, tiny / "data/runs/quick/train.partial"):
        put(partial / "sub/note.txt", partial / "note.txt")
        (partial / "weights.safetensors").mkdir()  # a folder with a name that the pipeline is about to write
        put(partial / "weights.safetensors/note.txt")
    put(network / "context.json", tiny / "data/runs/quick/train.partial/history.csv")  # about to be written too
    assert stage("train", "--set", "train.epochs=3").code == 0
    for folder in (network.with_suffix(""), tiny / "data/runs/quick/train"):
        assert not list(folder.parent.glob("*.partial"))
        for name in ("note.txt", "sub/note.txt", "weights.safetensors.kept/note.txt"):
            assert (folder / name).read_text() == "mine: note.txt"
        assert (folder / "weights.safetensors").is_file()
    assert (network.with_suffix("") / "context.json.kept").read_text() == "mine: context.json"
    assert (tiny / "data/runs/quick/train/history.csv.kept").read_text() == "mine: history.csv"


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("call", ["rename quick", "rename quick.partial", "rename note.txt", "unlink submission.csv"])
def test_a_run_that_is_killed_while_it_publishes(runs, tiny, call, side):
    folder = tiny / "submissions/quick"
    put(folder / "note.txt", folder / "sub/note.txt")
    arguments = ("--stage", "predict", *TINY, "--device", "cpu", "--workspace", tiny)
    killed = runs(*arguments, "--force", kill=(f"{side} {call}", signal.SIGKILL))
    assert killed.code == -signal.SIGKILL
    assert (publishing.published_dir(folder) / "submission.csv").exists()
    assert runs("--clean", "--yes", "--workspace", tiny).code == 0
    assert runs(*arguments).code == 0
    assert [path.name for path in folder.parent.iterdir()] == ["quick"]
    for name in ("note.txt", "sub/note.txt"):
        assert (folder / name).read_text() == "mine: note.txt"


def test_registering_files_of_the_user_deletes_only_what_was_downloaded(command, tmp_path, tables):
    raw = tmp_path / "data/raw"
    download = ("--stage", "download", "--workspace", tmp_path)
    assert command(*download, "--data", "sample").code == 0
    write_tables(raw, tables)
    check = put(raw / "test_labels.csv")
    assert command(*download).code == 0
    check()
    assert store.require_manifest(raw)["numbers"] == {"source": "files"}
    for name in tables:
        (raw / name).rename(tmp_path / name)
    hidden = put(raw / ".hidden")
    assert command(*download, "--data", "sample").code == 2  # test_labels.csv would be replaced
    (raw / "test_labels.csv").unlink()
    assert command(*download, "--data", "sample").code == 0
    hidden()

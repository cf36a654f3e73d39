"""Any name of a file can be read, recorded and shown, on any terminal."""

import ast
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline import errors
from pipeline.cli.main import main
from pipeline.cli.workflows import BLEND
from pipeline.extras import EXTRAS
from pipeline.kaggle.client import KaggleError
from pipeline.machine import environment
from pipeline.workflow import store
from tests.conftest import as_zip, competition_tables, write_tables
from tests.interference import ROOT

TABLES, IMAGES, LABELS = competition_tables(200, 20)
FRAGMENTS = (
    b": ",
    b":",
    b" ",
    b"'",
    b'"',
    b"\n",
    b"\r",
    b"\x1b[31m",
    b"\xc2\x9b2J",
    b"\xe2\x80\xae",
    b"\xf0\x9f\x98\x80",
)
FRAGMENTS += (b"caf\xe9", b"-", b"--", b"*", b"[a]", b"$(x)", b"~", b",", b"\\", b"%s", b"{0}", b"quick: prepare", b"+")
HOSTILE = os.fsdecode(b"-caf\xe9: \"'\n$(x)\x1b[31m")
names = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), min_size=1, max_size=6).map(
    lambda parts: os.fsdecode(b"".join(parts).replace(b"/", b"").replace(b"\0", b"")[:99] or b"x")
)
DISTURBING = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def can_create(folder, name):
    """Whether the file system accepts a name: some accept only UTF-8."""
    try:
        (folder / name).touch()
    except OSError:
        return False
    return True


@pytest.fixture
def hostile(tmp_path):
    if not can_create(tmp_path, HOSTILE + ".x"):
        pytest.skip("the file system accepts only UTF-8")
    return tmp_path / HOSTILE


def require_lines(text):
    assert text.endswith("\n") and not DISTURBING.search(text.replace("\n", "")), repr(text)


class TestInputs:
    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(name=names, place=st.sampled_from(["data/raw", "zip", "folder", "workspace"]))
    @example("digits: v2", "data/raw")
    @example("digits: v2", "folder")
    @example(HOSTILE, "folder")
    @example(HOSTILE, "workspace")
    def test_data(self, tmp_path_factory, name, place):
        """The same arrays, whatever the names of a zip, of the folder around it, or of the workspace."""
        folder = tmp_path_factory.mktemp("names")
        if not can_create(folder, name + ".x"):
            return
        workspace, data = folder / "workspace", "auto"
        if place == "data/raw":
            (workspace / place).mkdir(parents=True)
            (workspace / place / f"{name}.zip").write_bytes(as_zip(TABLES))
        elif place == "zip":
            data = folder / f"{name}.zip"
            data.write_bytes(as_zip(TABLES))
        else:
            # Within a folder, so that the name may be "." or "..".
            data = folder / f"{name}.d" if place == "folder" else folder
            data.mkdir(exist_ok=True)
            (data / f"{name}.zip").write_bytes(as_zip(TABLES))
            workspace = workspace if place == "folder" else folder / f"{name}.w"
        arguments = [f"--data={data}", f"--workspace={workspace}", "--recipe", "quick"]
        for stage in ("download", "prepare"):
            assert main(["--stage", stage, *arguments]) == 0
        arrays = {path.stem: np.load(path) for path in (workspace / "data/prepared/arrays").glob("*.npy")}
        assert np.array_equal(arrays["train_images"], IMAGES[:200])
        assert np.array_equal(arrays["train_labels"], LABELS[:200])
        assert np.array_equal(arrays["test_images"], IMAGES[200:])

    def test_images(self, command, tmp_path):
        pytest.importorskip("pipeline.extras.recognize")
        image = Image.new("L", (80, 80), 255)
        ImageDraw.Draw(image).line([(40, 12), (40, 68)], fill=0, width=7)
        created = [name + ".png" for name in map(os.fsdecode, FRAGMENTS) if can_create(tmp_path, name + ".png")]
        for name in created:
            image.save(tmp_path / name, "PNG")
        run = command("--stage", "recognize", "--images", tmp_path, "--workspace", tmp_path / "w", "--device", "cpu")
        assert run.code == 0, run.err
        require_lines(run.out)
        assert sum(": 1 (" in line for line in run.lines()) == len(created)
        table = (tmp_path / "w/data/recognized/recognized.csv").read_bytes().decode()
        rows = list(csv.DictReader(io.StringIO(table, newline="")))
        expected = [str(tmp_path / name).encode(errors="backslashreplace").decode() for name in sorted(created)]
        assert [row["file"] for row in rows] == expected

    def test_the_command_that_a_message_names_can_be_repeated(self, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["--stage", "prepare", "--workspace=-a b", "--data=-x"]) == 2
        command = re.search(r"`python (.*?)`", capsys.readouterr().err)[1]
        assert "'--workspace=-a b' --data=-x" in command

    @given(st.binary().map(os.fsdecode))
    def test_json_holds_any_name(self, name):
        path = Path(os.devnull)
        content = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "write", lambda path, text: content.append(text))
            store.write_json(path, {name: name})
        assert json.loads(content[0]) == {name: name}


class TestShowing:
    @given(st.text(), st.sampled_from(["ascii", "latin-1", "utf-8", "cp1252", "shift_jis"]))
    def test_any_text_is_one_harmless_line(self, text, encoding):
        buffer = io.BytesIO()
        stream = io.TextIOWrapper(buffer, encoding, newline="")
        errors.show(text, stream)
        line = buffer.getvalue().decode(encoding)
        assert line.endswith("\n") and not DISTURBING.search(line[:-1])
        assert len(line) - 1 >= len(text)
        harmless = [c for c in text if c == " " or c.isprintable()]
        assert encoding != "utf-8" or len(harmless) < len(text) or line == f"{text}\n"

    def test_what_is_escaped(self):
        assert errors.printable("a\x1b[0m\n\x9b\udce9\u202e\u2028") == r"a\x1b[0m\n\x9b\udce9\u202e\u2028"
        assert errors.printable("数字 — ‘é’ \u3000😀\\") == "数字 — ‘é’ \u3000😀\\"

    def test_nothing_else_prints(self):
        """`kaggle.process` answers on stdout; `notebook_file` contains code for Kaggle, as text."""
        printing = set()
        for path in (ROOT / "pipeline").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    *("print", "sys.stdout.write", "sys.stderr.write", "traceback.print_exc", "warnings.warn"),
                ):
                    printing.add(path.name)
        assert printing == {"errors.py", "process.py"}

    def test_texts_of_recipes_and_recorded_names(self, command, tmp_path):
        recipe = tmp_path / "mine.toml"
        recipe.write_text('about = "a\\u001b[2J\\u202e\\nb"\n')
        run = command("--stage", "prepare", "--recipe", recipe, "--workspace", tmp_path)
        assert run.code == 2 and r"recipe mine: a\x1b[2J\u202e\nb" in run.lines()
        (log,) = (tmp_path / "data/logs").iterdir()
        require_lines(log.read_text())
        folder = tmp_path / "data/runs/\x1b[31mred\n/train"
        folder.mkdir(parents=True)
        (folder / "context.json").write_text(json.dumps({"recipe": "\x1b[31m\n.toml"}))
        folder = tmp_path / "data/compare/\x1b[31m\n"
        folder.mkdir(parents=True)
        (folder / "context.json").write_text('{"stage": "compare"}')
        run = command("--status", "--workspace", tmp_path)
        assert run.code == 0 and len(run.lines()) == 1 + ("compare" in EXTRAS)
        require_lines(run.out)

    def test_answers_and_errors(self, command, monkeypatch, tmp_path):
        def fail(*arguments):
            raise KaggleError("Kaggle failed (\x1b]0;title\x07\n\u2028)")

        monkeypatch.setattr("pipeline.cli.main.show_recipes", fail)
        for options in ((), ("--debug",)):
            run = command("--list", *options)
            require_lines(run.err)
            assert run.code == 1 and run.err.endswith("error: Kaggle failed (\\x1b]0;title\\x07\\n\\u2028)\n")
        assert run.err.count("\n") > 5

    def test_wrong_options(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--list", "\x1b[31m\n\udce9"])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert r"\x1b[31m\n\udce9" in message
        require_lines(message)


class TestTerminals:
    """In a process of its own; none of these commands imports PyTorch."""

    def run(self, arguments, redirection="", **variables):
        command = [sys.executable, "run_pipeline.py", *map(os.fsencode, arguments)]
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        variables = {"HOME": "/", **kept, **variables}
        shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
        return subprocess.run([*shell, *command], cwd=ROOT, capture_output=True, env=variables, check=False)

    @pytest.mark.parametrize(
        "variables", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}], ids=str
    )
    def test_encodings(self, tmp_path, hostile, variables):
        write_tables(folder := hostile / "цифра", TABLES)
        run = self.run(["--stage", "download", f"--data={folder}\x1b.zip", f"--workspace={tmp_path}"], **variables)
        assert run.returncode == 2 and run.stderr.count(b"\n") == 1
        shown = folder.name.encode(variables.get("PYTHONIOENCODING", "utf-8"), "backslashreplace")
        assert rb"caf\udce9" in run.stderr and shown + rb"\x1b.zip" in run.stderr

    def test_the_locale_c(self, tmp_path, hostile):
        write_tables(folder := hostile / "цифра", TABLES)
        arguments = ["--stage", "download", f"--data={folder}", f"--workspace={hostile}"]
        assert self.run(arguments, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").returncode == 0
        assert (hostile / "data/raw/train.csv").read_bytes() == TABLES["train.csv"]

    def test_closed_streams(self, tmp_path):
        write_tables(tmp_path / "data", TABLES)
        arguments = ["--stage", "download", f"--data={tmp_path / 'data'}", f"--workspace={tmp_path}/w"]
        assert self.run(arguments, "<&- >&- 2>&-").returncode == 0
        assert (tmp_path / "w/data/raw/train.csv").read_bytes() == TABLES["train.csv"]
        run = self.run([*arguments, "--recipe", "nothing"], "2>&-")
        assert run.returncode == 2 and run.stdout == b""

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    @pytest.mark.parametrize("arguments", [["--nothing"], ["--status", "--recipe", "nothing"]])
    def test_stderr_that_cannot_be_written(self, arguments):
        assert self.run(arguments, "2>/dev/full").returncode == 2


class TestRecipeFilesOfOneName:
    @pytest.fixture
    def files(self, tmp_path):
        files = [tmp_path / folder / "mine.toml" for folder in ("a", "b")]
        for number, file in enumerate(files, 1):
            file.parent.mkdir()
            file.write_text(f"[train]\nseed = {number}\n")
        return files

    def record(self, workspace, file):
        folder = workspace / "data/runs/mine/train"
        folder.mkdir(parents=True)
        store.write_json(folder / store.CONTEXT, {"recipe": str(file)})

    def test_the_results_of_another_file_are_not_replaced(self, command, tmp_path, files):
        self.record(tmp_path, files[0])
        options = ("--stage", "prepare", "--workspace", tmp_path, "--recipe")
        run = command(*options, files[1])
        assert run.code == 2 and str(files[0]) in run.err and str(files[1]) in run.err
        assert "rename one of the files" in run.err
        refused = "which has the same name"
        assert refused not in command(*options, files[0]).err
        assert refused not in command(*options, "quick").err
        assert refused not in command(*options, files[1], "--force").err
        files[1].write_bytes(files[0].read_bytes())
        assert refused not in command(*options, files[1]).err

    def test_a_comparison(self, command, tmp_path, files):
        write_tables(tmp_path / "data/raw", TABLES)
        folder = tmp_path / "data/compare/mine+quick"
        folder.mkdir(parents=True)
        store.write_json(folder / store.CONTEXT, {"recipes": [str(files[0]), "quick"]})
        run = command("--stage", "compare", "--recipe", f"{files[1]},quick", "--workspace", tmp_path)
        assert run.code == 2 and "which has the same name" in run.err and not (tmp_path / "data/networks").exists()

    def test_a_file_that_was_moved_keeps_its_results(self, command, tmp_path, files):
        self.record(tmp_path, files[0])
        files[0].rename(tmp_path / "mine.toml")
        run = command("--stage", "prepare", "--workspace", tmp_path, "--recipe", tmp_path / "mine.toml")
        assert "which has the same name" not in run.err


class TestStatus:
    def test_a_run_that_cannot_be_read_is_one_line(self, command, tmp_path):
        for name, recipe in (("quick", "quick"), ("gone", "/nowhere/gone.toml"), ("c+d", "/a\0b/c.toml"), ("e", "")):
            folder = tmp_path / "data/runs" / name / "evaluate"
            folder.mkdir(parents=True)
            (folder / store.CONTEXT).write_text(json.dumps({"recipe": recipe}))
        for name, recipes in (
            ("e+f", []),
            ("a+b", ["a", "b"]),
            ("c+d", ["/c\0d.toml", "\udce9"]),
        ):
            folder = tmp_path / "submissions" / name
            folder.mkdir(parents=True)
            (folder / store.CONTEXT).write_text(json.dumps({"stage": "blend", "recipes": recipes}))
        run = command("--status", "--workspace", tmp_path)
        assert run.code == 0
        assert len([line for line in run.lines() if line.startswith("a recipe that has runs cannot be read: ")]) == 3
        assert len([line for line in run.lines() if re.match("blend .*: cannot be read ", line)]) == (2 if BLEND else 0)
        assert "recipe quick" in run.lines() and any(line.startswith("  train ") for line in run.lines())


class TestSigterm:
    @pytest.mark.parametrize("arguments", [["--list"], ["--status", "--recipe", "nothing"]])
    def test_the_handler_of_the_caller_is_restored(self, arguments, capsys):
        def handler(number, frame):
            pass

        before = signal.signal(signal.SIGTERM, handler)
        try:
            main(arguments)
            assert signal.getsignal(signal.SIGTERM) is handler
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_other_threads(self, capsys):
        codes = []
        thread = threading.Thread(target=lambda: codes.append(main(["--list"])))
        thread.start()
        thread.join()
        assert codes == [0]


@pytest.mark.skipif(not shutil.which("git"), reason="git is missing")
class TestCommit:
    def commit(self, folder):
        options = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false"]
        git = ["git", "-C", str(folder)]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, *options, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def test_only_the_repository_of_the_checkout_counts(self, monkeypatch, tmp_path):
        for name in list(os.environ):
            if name.startswith("GIT_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        checkout = tmp_path / "foreign/checkout"
        (checkout / "pipeline").mkdir(parents=True)
        self.commit(tmp_path / "foreign")
        monkeypatch.setattr(environment, "ROOT", checkout)
        observe = environment._commit.__wrapped__
        assert observe() is None
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "foreign/.git"))
        assert observe() is None
        monkeypatch.delenv("GIT_DIR")
        own = self.commit(checkout)
        assert observe() == own
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "foreign/.git"))
        assert observe() == own

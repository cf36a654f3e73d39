"""imagenet: ImageNet's weights from a file or a server, and one line about everything that can be wrong with them."""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import pickle
import re
import resource
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.errors import StageError
from pipeline.nn.imagenet_weights import read_weights
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.networks import load_networks
from pipeline.nn.saved_tensors import load_tensors
from pipeline.training import imagenet
from pipeline.workflow import store
from tests.conftest import write_tables
from tests.training.transfer import MODEL, QUICK, SmallNetwork, as_file, imagenet_state

STATE = imagenet_state(SmallNetwork(MODEL))
FILE = as_file(STATE)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr("pipeline.nn.models.alexnet.Network", SmallNetwork)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine for `imagenet.ADDRESS`; returns its folder and the list of requested paths."""
    folder, requested = tmp_path / "server", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requested.append(self.path)

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(imagenet, "ADDRESS", f"http://127.0.0.1:{httpd.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder, requested
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def published_name(monkeypatch):
    """The name of FILE with its hash, as the published file of AlexNet."""
    name = f"alexnet-{hashlib.sha256(FILE).hexdigest()[:8]}.pth"
    monkeypatch.setitem(imagenet.FILES, "alexnet", name)
    return name


def one_line(error):
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_the_published_files_have_their_hash_in_the_name():
    assert imagenet.ADDRESS == "https://download.pytorch.org/models/"
    assert imagenet.FILES["vgg16"] == "vgg16-397923af.pth" and imagenet.FILES["alexnet"] == "alexnet-owt-7be5be79.pth"


class TestLoading:
    @pytest.mark.parametrize("legacy", [False, True])  # the published files have PyTorch's old format
    def test_all_layers_except_the_last_get_the_weights(self, tmp_path, legacy):
        path = tmp_path / "weights.pth"
        path.write_bytes(as_file(STATE, legacy))
        network = make_initial_network(MODEL, 3, path)
        random = make_initial_network(MODEL, 3)
        for name, value in network.state_dict().items():
            expected = random.state_dict()[name] if name.startswith("classifier.6.") else STATE[name]
            assert torch.equal(value, expected), name

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (as_file({k: v for k, v in STATE.items() if k != "features.0.bias"}), "features.0.bias is missing"),
            (as_file(STATE | {"features.0.bias": torch.zeros(9)}), "features.0.bias has shape (9,), but alexnet"),
            (as_file(STATE | {"features.0.bias": 3}), "features.0.bias has shape ()"),
            (as_file(STATE | {"features.1.weight": torch.zeros(8)}), "alexnet has no features.1.weight"),
            (as_file({"state_dict": STATE}), "features.0.weight is missing"),
            (as_file([1, 2]), "contains a list"),
            (FILE[: len(FILE) // 2], "not weights that PyTorch saved, or an incomplete file"),
            (as_file(STATE, legacy=True)[:2000], "not weights that PyTorch saved, or an incomplete file"),
            (b"<html>404</html>", "not weights that PyTorch saved, or an incomplete file"),
            (b"", "not weights that PyTorch saved, or an incomplete file"),
            (as_file(functools.partial(print)), "not weights that PyTorch saved"),  # code is not run
        ],
    )
    def test_a_wrong_file_is_one_line(self, tmp_path, content, message):
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        with pytest.raises(StageError) as error:
            read_weights(path, MODEL)
        assert f"{path}: " in one_line(error) and message in str(error.value)


class TestFinding:
    def test_only_the_name_of_a_published_file_is_its_hash(self, tmp_path, published_name):
        for name in (published_name, "no-hash.pth", "backup-20240131.pth", "x: -00000000.pth"):
            path = tmp_path / name
            path.write_bytes(FILE)
            weights = imagenet.find_weights(MODEL.replace(pretrained="imagenet", weights_file=str(path)), tmp_path)
            assert (weights.path, weights.sha256) == (path, hashlib.sha256(FILE).hexdigest())
        (tmp_path / published_name).write_bytes(FILE[:-1])
        with pytest.raises(StageError) as error:
            imagenet.find_weights(MODEL.replace(weights_file=str(tmp_path / published_name)), tmp_path)
        assert "its SHA-256 begins with" in one_line(error) and "rename it if that is intended" in str(error.value)

    def test_a_file_that_does_not_exist(self, tmp_path):
        with pytest.raises(imagenet.MissingWeights, match=r"nothing\.pth is not a file"):
            imagenet.find_weights(MODEL.replace(weights_file=str(tmp_path / "nothing.pth")), tmp_path)

    def test_download_once(self, server, published_name, tmp_path):
        folder, requested = server
        (folder / published_name).write_bytes(FILE)
        for _ in range(2):
            weights = imagenet.find_weights(MODEL, tmp_path / "workspace")
            assert weights.path == tmp_path / "workspace/data/pretrained" / published_name
            assert weights.path.read_bytes() == FILE
        assert requested == [f"/{published_name}"]
        weights.path.write_bytes(FILE[:-1])
        with pytest.raises(StageError) as error:
            imagenet.find_weights(MODEL, tmp_path / "workspace")
        assert "delete it to download it again" in one_line(error)

    @pytest.mark.parametrize(
        ("content", "reason"), [(FILE[:-1], "invalid hash value"), (None, "404"), (as_file({}), "invalid hash value")]
    )
    def test_a_failed_download_leaves_nothing(self, server, published_name, tmp_path, content, reason):
        if content is not None:
            (server[0] / published_name).write_bytes(content)
        with pytest.raises(imagenet.MissingWeights) as error:
            imagenet.find_weights(MODEL, tmp_path)
        folder = tmp_path / "data/pretrained"
        for part in (reason, f"{imagenet.ADDRESS}{published_name}", str(folder), "--set model.weights_file=PATH"):
            assert part in one_line(error)
        assert list(folder.iterdir()) == []

    def test_without_network(self, tmp_path):
        """The fixture `no_credentials` names a proxy that does not exist."""
        with pytest.raises(imagenet.MissingWeights) as error:
            imagenet.find_weights(MODEL, tmp_path)
        assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in one_line(error)
        assert "refused" in str(error.value) and str(tmp_path / "data/pretrained") in str(error.value)

    def test_a_download_that_does_not_fit_on_the_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(imagenet, "MAX_BYTES", 1 << 60)
        with pytest.raises(store.DiskFull, match="alexnet-owt-7be5be79"):
            imagenet.find_weights(MODEL, tmp_path)


class TestCommandLine:
    @pytest.fixture
    def run(self, command, tables, tmp_path):
        write_tables(tmp_path / "ws/data/raw", tables)
        (tmp_path / "weights.pth").write_bytes(FILE)

        def call(stage, weights="weights.pth"):
            option = ("--set", f"model.weights_file={tmp_path / weights}") if weights else ()
            arguments = ("--status",) if stage == "status" else ("--stage", stage)
            return command(*arguments, *QUICK, *option, "--workspace", tmp_path / "ws")

        return call

    def test_the_content_of_the_file_identifies_the_network(self, run, tmp_path):
        first = run("all")
        assert first.code == 0, first.err
        (folder,) = tmp_path.glob("ws/data/networks/alexnet-*/")
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["inputs"]["imagenet/alexnet"] == hashlib.sha256(FILE).hexdigest()
        (network,) = load_networks(folder / "weights.safetensors", "cpu")
        assert torch.equal(network.network.state_dict()["features.0.weight"], STATE["features.0.weight"])
        assert str(tmp_path).encode() not in (folder / "weights.safetensors").read_bytes()

        (tmp_path / "copy.pth").write_bytes(FILE)
        assert "train: fresh" in run("all", "copy.pth").out
        (tmp_path / "other.pth").write_bytes(as_file({name: value + 1 for name, value in STATE.items()}))
        status = run("status", "other.pth").out
        assert "train     stale    other.pth contains other weights than those of the training" in status
        assert "it started from other weights than alexnet-owt-7be5be79.pth" in run("status", "").out
        (tmp_path / "weights.pth").unlink()
        missing = run("all")
        assert missing.code == 2 and "weights.pth is not a file" in missing.err
        assert run("all", "other.pth").code == 0
        assert len(list(tmp_path.glob("ws/data/networks/alexnet-*/manifest.json"))) == 2

    @pytest.mark.usefixtures("without_pictures")
    def test_a_comparison_is_stale_if_the_content_of_the_file_changes(self, run, command, tmp_path):
        assert run("compare").code == 0
        comparisons = ("--status", "--workspace", tmp_path / "ws")
        assert command(*comparisons).lines()[-1].endswith(": fresh")
        (tmp_path / "weights.pth").write_bytes(as_file({name: value + 1 for name, value in STATE.items()}))
        assert "stale (weights.pth contains other weights" in command(*comparisons).out

    def test_without_weights_there_is_one_line(self, run):
        assert run("prepare", "").code == 2  # download and prepare are missing
        failed = run("all", "")
        assert failed.code == 2 and failed.err.count("\n") == 1
        assert "the weights of alexnet are missing, and https://download.pytorch.org/models/" in failed.err


class TestComparison:
    def call(self, command, tables, tmp_path, *recipes):
        write_tables(tmp_path / "data/raw", tables)
        settings = ("--set", "train.epochs=1", "--seeds", "1", "--workspace", tmp_path, "--device", "cpu")
        return command("--stage", "compare", "--recipe", ",".join(recipes), *settings)

    @pytest.mark.usefixtures("without_pictures")
    def test_a_folders_recipe_without_weights_is_left_out(self, command, tables, tmp_path):
        run = self.call(command, tables, tmp_path, "ladder/lenet", "transfer")
        assert run.code == 0, run.err
        for name in ("transfer/vgg16", "transfer/alexnet"):
            (line,) = (line for line in run.lines() if line.startswith(f"compare: {name} "))
            assert "is left out: the weights of" in line and "cannot be downloaded" in line
        (table,) = tmp_path.glob("data/compare/*/table.md")
        text = table.read_text()
        assert "Left out, since ImageNet's weights are not available: transfer/vgg16, transfer/alexnet." in text
        assert "| ladder/lenet |" in text and "| transfer/" not in text
        status = command("--status", "--workspace", tmp_path).out
        assert [line.split(":")[1] for line in status.splitlines() if line.startswith("compare ")] == [" fresh"]

    def test_a_recipe_that_is_named_is_an_error(self, command, tables, tmp_path):
        for recipes in (["ladder/lenet", "transfer/alexnet"], ["transfer"]):
            run = self.call(command, tables, tmp_path, *recipes)
            assert run.code == 2 and "are missing, and https://download.pytorch.org/models/" in run.err


# Files that expand to more than a network has


def as_zip(entries, compression=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return content.getvalue()


def compressed(state):
    """A file of torch.save with compressed entries."""
    with zipfile.ZipFile(io.BytesIO(as_file(state))) as archive:
        return as_zip({name: archive.read(name) for name in archive.namelist()})


def as_pickle(function, *arguments):
    """A pickle, in protocol 2, that calls a function when it is loaded."""

    class Call:
        def __reduce__(self):
            return function, arguments

    return pickle.dumps(Call(), protocol=2)


BIG = 1 << 27  # bytes
BOMBS = {
    "compressed zeros": lambda: compressed(STATE | {"features.0.bias": torch.zeros(BIG // 4)}),
    "a compressed last layer": lambda: compressed(STATE | {"classifier.6.weight": torch.zeros(BIG // 4)}),
    "a compressed pickle": lambda: as_zip({"archive/data.pkl": b"\x80\x02" + b"0" * BIG, "archive/version": b"3\n"}),
    "a large array of bytes": lambda: as_zip(
        {"archive/data.pkl": as_pickle(bytearray, BIG), "archive/version": b"3\n"}, zipfile.ZIP_STORED
    ),
    "a large array of bytes in the old format": lambda: as_file({}, legacy=True)[:15] + as_pickle(bytearray, BIG),
    "a large tensor in the old format": lambda: as_file({"weight": torch.zeros(BIG // 4)}, legacy=True),
    "an expanded tensor": lambda: as_file(STATE | {"features.0.bias": torch.zeros(1).expand(BIG)}),
}


class TestSizes:
    @pytest.mark.parametrize("name", BOMBS)
    def test_a_file_that_takes_more_memory_than_the_network_is_refused(self, tmp_path, name):
        """In a process with room for less than a quarter of what the file would take."""
        path = tmp_path / "weights.pth"
        path.write_bytes(FILE)
        read_weights(path, MODEL)  # imports what it uses
        path.write_bytes(BOMBS[name]())
        with limited_memory(BIG // 4), pytest.raises(StageError) as error:
            read_weights(path, MODEL)
        assert f"{path}: " in one_line(error)
        if name != "an expanded tensor":  # which takes no memory
            assert re.search(
                r"its contents take [0-9,]+ bytes, more than the [0-9,]+ that|it contains", str(error.value)
            )

    def test_the_command_line_answers_in_one_line(self, command, tables, tmp_path):
        write_tables(tmp_path / "data/raw", tables)
        path = tmp_path / "weights.pth"
        path.write_bytes(BOMBS["compressed zeros"]())
        assert path.stat().st_size < 1 << 20
        run = command("--stage", "all", *QUICK, "--set", f"model.weights_file={path}", "--workspace", tmp_path)
        assert run.code == 2 and run.err.count("\n") == 1
        assert re.match(rf"error: {re.escape(str(path))}: .*\(its contents take [0-9,]+ bytes, more than the ", run.err)

    def test_a_compressed_file_that_fits_is_read(self, tmp_path):
        path = tmp_path / "weights.pth"
        path.write_bytes(compressed(STATE))
        weights = read_weights(path, MODEL)
        assert all(torch.equal(weights[name], STATE[name]) for name in weights) and len(weights) == len(STATE) - 2
        path.write_bytes(as_file({name: value.double() for name, value in STATE.items()}))
        assert torch.equal(read_weights(path, MODEL)["features.0.weight"].float(), STATE["features.0.weight"])

    def test_a_compressed_checkpoint_is_refused(self):
        state = {"epoch": 3, "network": STATE, "history": [{"epoch": 1, "train_loss": 0.5}]}
        assert load_tensors(io.BytesIO(as_file(state)))["history"] == state["history"]
        with pytest.raises(ValueError, match="its contents take"):
            load_tensors(io.BytesIO(compressed(state | {"row_losses": torch.zeros(100_000)})))


@contextlib.contextmanager
def limited_memory(n_bytes):
    """Allow this process only `n_bytes` of additional memory, on Linux."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)

"""Where networks are trained: processes that are killed, GPUs, a real Dask cluster, and engines that do not exist."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.cli.main import main
from pipeline.errors import StageError
from pipeline.training import pool
from pipeline.training.pool import ParentGone, Pool
from tests.conftest import ENSEMBLE, TINY, write_tables

# Four networks that take long enough to be interrupted in the middle.
FOUR = (*ENSEMBLE, "--set", "train.epochs=60", "--set", "train.batch_size=25")
RESULTS = ("weights.safetensors", "history.csv")


def start(*arguments, env=None):
    """A Python process that leads a process group of its own."""
    arguments = [sys.executable, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, env=env, start_new_session=True, **pipes)


def start_training(workspace, *more):
    """`--stage train` with FOUR in two processes."""
    arguments = ("--stage", "train", *FOUR, "--workspace", workspace, "--device", "cpu", "--debug", *more)
    return start("run_pipeline.py", *arguments, env=os.environ | {"LOKY_MAX_CPU_COUNT": "2"})


def wait_until(condition, process=None, seconds=60):
    """Wait until `condition()` is true while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"it ended before: {process.stdout.read()}"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def processes_of_group(leader):
    """The ids of a group's processes that are alive."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                alive.append(path.parent.name)
    return alive


def trained(workspace):
    """Name of each published network's folder, and the time its manifest was written."""
    paths = workspace.glob("data/networks/*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in paths if path.parent.suffix != ".partial"}


def in_training(workspace):
    """The networks in the first half of their training, after two epochs, so that a checkpoint is saved."""
    names = []
    for path in workspace.glob("data/networks/*.partial/log.txt"):
        with contextlib.suppress(FileNotFoundError):  # it was published meanwhile
            text = path.read_text()
            if "epoch 2," in text and "epoch 30," not in text:
                names.append(path.parent.name.removesuffix(".partial"))
    return names


def read_results(workspace):
    return [(workspace / "data/runs/quick/train" / name).read_bytes() for name in RESULTS]


def read_log(workspace, network):
    return (workspace / "data/networks" / network / "log.txt").read_text()


@pytest.fixture(scope="module")
def _prepared(tmp_path_factory, tables):
    workspace = tmp_path_factory.mktemp("prepared")
    write_tables(workspace / "data" / "raw", tables)
    for stage in ("download", "prepare", "augment"):
        assert main(["--stage", stage, *FOUR, "--workspace", str(workspace)]) == 0
    return workspace


@pytest.fixture
def prepared(_prepared, tmp_path):
    """A workspace in which the stages before `train` have run."""
    return shutil.copytree(_prepared, tmp_path / "prepared")


@pytest.fixture(scope="module")
def undisturbed(_prepared, tmp_path_factory):
    """The results of an undisturbed training in this process."""
    workspace = shutil.copytree(_prepared, tmp_path_factory.mktemp("undisturbed") / "workspace")
    arguments = ["--stage", "train", *FOUR, "--workspace", str(workspace), "--device", "cpu"]
    assert main(arguments) == 0
    return read_results(workspace)


class TestProcesses:
    @pytest.mark.slow
    def test_a_killed_training_continues_with_what_is_missing(self, prepared, command, undisturbed):
        """Killed in two processes, continued in this one."""
        process = start_training(prepared)
        wait_until(lambda: trained(prepared) and in_training(prepared), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        published, interrupted = trained(prepared), in_training(prepared)
        assert interrupted
        wait_until(lambda: not processes_of_group(process.pid), seconds=30)  # idle workers after pool.IDLE_TIMEOUT
        run = command("--stage", "train", *FOUR, "--workspace", prepared, "--device", "cpu")
        assert run.code == 0, run.err
        assert f"{len(published)} of 4 networks exist already" in run.out
        assert len(trained(prepared)) == 4 and published.items() <= trained(prepared).items()
        assert any("continuing after epoch" in read_log(prepared, name) for name in interrupted)
        assert read_results(prepared) == undisturbed

    @pytest.mark.slow
    def test_a_killed_worker_is_an_error_and_the_next_run_continues(self, prepared, command, undisturbed):
        process = start_training(prepared)
        wait_until(lambda: trained(prepared) and in_training(prepared), process)
        workers = [pid for pid in processes_of_group(process.pid) if is_worker(pid)]
        os.kill(int(workers[0]), signal.SIGKILL)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 1 and "error: " in output
        assert command("--stage", "train", *FOUR, "--workspace", prepared, "--device", "cpu").code == 0
        assert read_results(prepared) == undisturbed

    @pytest.mark.slow
    def test_no_worker_survives_a_killed_comparison(self, tmp_path, tables):
        """Also if the shell ignores SIGINT, as for a background job of a script."""
        write_tables(tmp_path / "data/raw", tables)
        arguments = ("--recipe", "ladder/lenet,ladder/lenet_normalized", "--set", "train.epochs=100000", "--seeds", "1")
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            arguments = ("--stage", "compare", *arguments, "--workspace", tmp_path, "--device", "cpu")
            process = start("run_pipeline.py", *arguments, env=os.environ | {"LOKY_MAX_CPU_COUNT": "2"})
        finally:
            signal.signal(signal.SIGINT, handler)
        wait_until(lambda: len(list(tmp_path.glob("data/networks/*.partial/checkpoint.pt"))) == 2, process)
        process.kill()
        process.wait()
        wait_until(lambda: not processes_of_group(process.pid), seconds=7)

    def test_a_training_notices_that_its_parent_has_ended(self):
        pool.require_parent(os.getppid())
        pool.require_parent(os.getpid())
        with pytest.raises(ParentGone):
            pool.require_parent(2**22 + 1)

    @pytest.mark.parametrize("trains", [True, False])
    def test_a_worker_ends_when_its_parent_is_killed(self, trains):
        """Whether it trains, which is interrupted, or has no work."""
        read, write = os.pipe()
        if not (parent := os.fork()):
            if not os.fork():
                work(write, trains)
            time.sleep(60)
            os._exit(0)
        os.close(write)
        with open(read, "rb", buffering=0) as pipe:
            assert pipe.read(1) == b"."
            os.kill(parent, signal.SIGKILL)
            os.waitpid(parent, 0)
            assert pipe.read() == (b"interrupted" if trains else b"")

    def test_jobs_run_one_after_another_in_this_process_if_there_is_one_worker(self, tmp_path):
        local = Pool("local", "cpu", "cpu")
        results = local.run(len, [("a",), ("bc",)], 1, lambda text: (text, os.getpid()))
        assert list(results) == [("a", os.getpid()), ("bc", os.getpid())]

    @pytest.mark.parametrize(("threads", "n_workers"), [(1, 4), (2, 2), (3, 1), (9, 1)])
    def test_workers_share_the_cores(self, monkeypatch, tmp_path, threads, n_workers):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "4")
        monkeypatch.setattr("joblib.cpu_count", lambda: 4)
        assert Pool("local", "cpu", "cpu").n_workers(threads, 1) == n_workers


class TestPlaces:
    """Each process of a pool has a GPU of its own choice: the first free place on the GPUs in turn."""

    @pytest.fixture
    def take(self, monkeypatch, tmp_path):
        """Take a place as a process that has trained on `own_gpus`; returns its lock and the GPU that was selected."""

        def take(own_gpus=()):
            monkeypatch.setattr(pool, "_own_gpus", set(own_gpus))
            lock = pool._take_gpu.__wrapped__(str(tmp_path), (0, 3), 4)
            return lock, selected[-1]

        selected = []
        monkeypatch.setattr("torch.cuda.set_device", selected.append)
        return take

    def test_processes_are_on_the_gpus_in_turn(self, take):
        places = [take() for _ in range(4)]
        assert [gpu for _, gpu in places] == [0, 3, 0, 3]

    @pytest.mark.parametrize("number", [0, 1, 3])
    def test_a_new_process_has_the_gpu_of_the_process_that_ended(self, take, number):
        places = [take() for _ in range(4)]
        places[number][0].release()
        assert take()[1] == (0, 3, 0, 3)[number]

    def test_a_process_waits_for_the_process_that_it_replaces(self, take, monkeypatch):
        places = [take() for _ in range(4)]
        monkeypatch.setattr("time.sleep", lambda seconds: places[1][0].release())
        assert take()[1] == 3

    def test_a_process_that_trained_for_another_recipe_stays_on_its_gpu_if_it_can(self, take):
        places = [take(own_gpus) for own_gpus in ([3], [3], [3], [])]
        assert [gpu for _, gpu in places] == [3, 3, 0, 0]

    def test_a_process_keeps_its_gpu(self, monkeypatch, tmp_path):
        selected = []
        monkeypatch.setattr(pool, "_own_gpus", set())
        monkeypatch.setattr("torch.cuda.set_device", selected.append)
        for _ in range(3):
            assert pool._call_on_own_gpu(str(tmp_path), (1, 2), 2, len, "ab") == 2
        assert selected == [1]
        pool._take_gpu.cache_clear()


def work(pipe, trains):
    """What a process of the pool does; it writes "late" if it has not ended after some seconds."""
    try:
        with pool.worker(os.getppid(), "cpu", 1):
            if trains:
                os.write(pipe, b".")
                try:
                    for _ in range(100):
                        time.sleep(0.1)
                except KeyboardInterrupt:
                    os.write(pipe, b"interrupted")
        if not trains:
            os.write(pipe, b".")
        time.sleep(10)
        os.write(pipe, b"late")
    finally:
        os._exit(0)


def is_worker(pid):
    return b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The address of a real Dask scheduler on 127.0.0.1, and its two worker processes."""
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    options = ("--no-dashboard", "--scheduler-file", file)
    processes = [start("-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", *options)]
    try:
        wait_until(file.exists, processes[0])
        address = json.loads(file.read_bytes())["address"]
        monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        processes += [start("-m", "dask", "worker", address, *options) for _ in range(2)]
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


class TestDask:
    @pytest.mark.slow
    def test_a_cluster_that_loses_a_worker(self, prepared, undisturbed, cluster):
        address, workers = cluster
        process = start_training(prepared, "--engine", f"dask={address}")
        wait_until(lambda: trained(prepared) and len(in_training(prepared)) == 2, process)
        published, interrupted = trained(prepared), in_training(prepared)
        workers[0].kill()
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        assert published.items() <= trained(prepared).items() and len(trained(prepared)) == 4
        for network in trained(prepared):
            assert read_log(prepared, network).count("epoch 1,") == 1  # none was trained twice
        assert sum("continuing after epoch" in read_log(prepared, network) for network in interrupted) == 1
        assert read_results(prepared) == undisturbed

    def test_a_cluster_of_one_thread_is_refused(self, tmp_path):
        distributed = pytest.importorskip("distributed")
        options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp"}
        with distributed.LocalCluster(**options, dashboard_address=None) as cluster:
            engine = f"dask={cluster.scheduler_address}"
            with pytest.raises(StageError, match="the cluster has fewer than two worker threads"):
                next(Pool(engine, "cpu", "cpu").run(len, [("a",), ("b",)], 1, len))


class TestEngine:
    @pytest.mark.parametrize(
        ("engine", "message"),
        [
            ("dask=tcp://127.0.0.1:9", "no Dask scheduler answers"),
            ("slurm", "expected local or dask=tcp://HOST:PORT"),
        ],
    )
    def test_an_engine_that_does_not_exist_is_refused(self, prepared, command, monkeypatch, engine, message):
        if engine.startswith("dask"):
            pytest.importorskip("distributed")
        monkeypatch.setattr(pool, "DASK_TIMEOUT", 0.5)
        run = command("--stage", "train", *FOUR, "--workspace", prepared, "--engine", engine)
        assert run.code == 2 and message in run.err and run.err.count("\n") == 1
        assert not trained(prepared)

    def test_dask_that_is_not_installed_is_named(self, prepared, command, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        run = command("--stage", "train", *FOUR, "--workspace", prepared, "--engine", "dask=tcp://127.0.0.1:9")
        assert run.code == 2 and "requirements/dask.txt" in run.err and run.err.count("\n") == 1

    def test_a_single_network_is_refused_before_anything_is_written(self, tmp_path, command):
        run = command("--stage", "all", *TINY, "--workspace", tmp_path, "--engine", "dask=tcp://127.0.0.1:9")
        assert run.code == 2 and "quick trains a single network" in run.err and not list(tmp_path.iterdir())

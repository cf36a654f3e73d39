"""`ensure`, the only place that trains: it skips the networks that exist and resumes what was interrupted."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import StageError
from pipeline.machine import devices
from pipeline.recipes import config
from pipeline.training import features, imagenet
from pipeline.training.arrays import TrainingArrays
from pipeline.training.footprint import least_memory
from pipeline.training.pool import Pool, make_pool
from pipeline.training.progress import show_progress
from pipeline.training.specs import NetworkSpec, Spec
from pipeline.training.task import HISTORY, LOG, History, TrainingOutcome, TrainingTask, read_history, train_network
from pipeline.workflow import code, publishing, schemas, store
from pipeline.workflow.context import StageContext
from pipeline.workflow.store import Manifest

NETWORKS = "data/networks"  # below the workspace
SCREEN_INTERVAL = 60  # seconds between lines about the training of a single network, without a progress bar


@dataclass(frozen=True)
class Request:
    """A network that a stage needs, with the arrays to train it."""

    spec: Spec
    arrays: TrainingArrays
    context: StageContext  # whose inputs the arrays are from
    test_data: str = ""  # identifies the test rows in the arrays
    label: str = ""  # in messages; by default the spec's name

    def __str__(self) -> str:
        return self.label or self.spec.name

    def observations(self) -> dict[str, str]:
        """What is recorded during the training in addition to the weights, and by which code or on which data."""
        observed = {"weights record": code.digest(["pipeline.nn.recorder"])} if self.spec.is_recorded else {}
        return observed | ({} if self.arrays.test_images is None else {"test accuracy": self.test_data})

    def started(self) -> dict[str, Any]:
        """The content of started.json while the network is trained."""
        return {**self.spec.key(), "observations": self.observations()}


@dataclass(frozen=True)
class TrainedNetwork:
    """A network in its folder; with `error`, a training that diverged."""

    spec: Spec
    folder: Path
    error: str = ""

    def numbers(self) -> dict[str, Any]:
        """The manifest's numbers: precision, kept epoch, parameters, validation accuracy."""
        numbers: dict[str, Any] = store.require_manifest(self.folder)["numbers"]
        return numbers

    def history(self) -> History:
        return read_history(self.folder / HISTORY, self.spec)


def ensure(
    context: StageContext,
    requests: Sequence[Request],
    on_epoch: Callable[[History], None] = lambda history: None,
    on_trained: Callable[[Spec, History], None] = lambda spec, history: None,
    keep_going: bool = False,
) -> list[TrainedNetwork]:
    """Train the networks that do not exist yet; returns all of them in the order of the requests.

    on_epoch: called with the history after each epoch of a network that is trained in this process.
    on_trained: called with each network that was trained.
    keep_going: a training that diverges is returned with its error, instead of raising StageError.
    """
    run, pool = context.run, make_pool(context)
    base = store.resolve(run.workspace / NETWORKS)
    networks = [TrainedNetwork(request.spec, base / request.spec.folder_name) for request in requests]
    context.network_folders |= {network.folder.name for network in networks}
    store.write_json(context.output_dir / store.REFERENCES, {"folders": sorted(context.network_folders)})
    missing: dict[Path, Request] = {}
    for network, request in zip(networks, requests, strict=True):
        publishing.restore(network.folder)
        if not run.force:
            _publish_if_complete(network)
        # A training that --force started and that was interrupted continues, although there is an older network.
        can_resume = _can_resume(_read_started(network.folder), request)
        if run.force or can_resume or not _is_reusable(context, network, request):
            missing.setdefault(network.folder, request)
    if len(requests) > 1 and len(missing) < len(networks):
        n_existing = len({network.folder for network in networks}) - len(missing)
        context.say(f"{n_existing} of {n_existing + len(missing)} networks exist already")
    if not missing:
        return networks
    missing = _with_features(missing)
    if pool.device == "cpu" and pool.engine == "local":
        _require_memory(missing.values())
    tasks = {str(publishing.staging_dir(folder)): (folder, request) for folder, request in missing.items()}
    arguments = [_task_arguments(context, pool.worker_device(), folder, request) for folder, request in missing.items()]
    threads = max(request.spec.threads for request in missing.values()) or 1
    single = len(arguments) == 1
    per_gpu = 1 if single else _networks_per_gpu(context, missing.values(), pool)
    n_workers = pool.n_workers(threads, per_gpu)
    in_process = functools.partial(train_network, on_epoch=on_epoch, log=_log_to(context, single), progress_bar=single)
    errors: dict[Path, str] = {}
    with contextlib.ExitStack() as stack:
        finished = set[Path]()
        if not single:
            epochs = {Path(staging): request.spec.epochs for staging, (_, request) in tasks.items()}
            finished = stack.enter_context(show_progress(context, epochs)).finished
        for number, outcome in enumerate(pool.run(train_network, arguments, n_workers, in_process), 1):
            folder, request = tasks[outcome.staging_dir]
            if outcome.error and not keep_going:
                raise StageError(f"{request}: {outcome.error}")
            if outcome.error:
                errors[folder] = outcome.error
                text = f"failed ({number} of {len(arguments)}): {outcome.error}"
            else:
                _publish(context, folder, request, outcome)
                on_trained(request.spec, outcome.history)
                accuracy = outcome.numbers.get("validation_accuracy")
                shown = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
                text = f"done in {outcome.seconds:.0f} s ({number} of {len(arguments)}){shown}"
            finished.add(Path(outcome.staging_dir))
            if outcome.error or not single:
                with tqdm.external_write_mode():
                    context.say(f"{request} {text}")
    return [replace(network, error=errors.get(network.folder, "")) for network in networks]


def _with_features(requests: dict[Path, Request]) -> dict[Path, Request]:
    """The requests with the features of a frozen extractor in place of images; those with equal features share them."""
    shared: dict[Any, TrainingArrays] = {}
    results = {}
    for folder, request in requests.items():
        spec = request.spec
        if isinstance(spec, NetworkSpec) and spec.model.has_frozen_extractor:
            seed = spec.seed if spec.model.pretrained == "none" else None
            key = (id(request.arrays), spec.model, spec.train.precision, seed)
            if key not in shared:
                shared[key] = features.with_features(request.context, spec, request.arrays)
            request = replace(request, arrays=shared[key])
        results[folder] = request
    return results


def _is_reusable(context: StageContext, network: TrainedNetwork, request: Request) -> bool:
    """Whether a network exists, is intact and has the observations that are requested."""
    manifest = _read_manifest(network.folder, network.spec)
    if not manifest or store.changed_outputs(network.folder, manifest):
        return False
    observed = manifest["numbers"].get("observations", {})
    if lacking := [name for name, data in request.observations().items() if observed.get(name) != data]:
        context.say(f"{request} exists without its {' and '.join(lacking)}; training it again")
        return False
    return True


def _read_manifest(folder: Path, spec: Spec) -> Manifest | None:
    """The folder's manifest if it is valid and records this spec, otherwise None."""
    manifest, _ = store.read_manifest(folder)
    return manifest if manifest and config.matches(manifest, spec.key()) else None


def _read_started(folder: Path) -> dict[str, Any]:
    """What an interrupted training of the network in `folder` was started for; {} if there is none."""
    return store.read_json(publishing.staging_dir(folder) / store.STARTED, schemas.Started) or {}


def _can_resume(started: dict[str, Any], request: Request) -> bool:
    """Whether an interrupted training was started for the same spec, with at least the requested observations."""
    observations = started.get("observations", {})
    return config.matches(started, request.spec.key()) and observations == observations | request.observations()


def _require_memory(requests: Iterable[Request]) -> None:
    """Raise StageError if one of the trainings needs more memory than this machine has; they are on the CPU."""
    estimate = functools.cache(least_memory)
    for request in requests:
        if isinstance(request.spec, NetworkSpec):
            train = request.spec.train.replace(seed=0)
            needed = estimate(request.spec.model, train, "cpu", len(request.arrays.labels))
            devices.require_memory(needed, str(request))


def _networks_per_gpu(context: StageContext, requests: Iterable[Request], pool: Pool) -> int:
    """How many networks to train on each GPU at the same time; recorded in context.json."""
    if pool.device != "cuda" or pool.engine != "local":
        return 1
    settings = {request.context.recipe.ensemble.networks_per_gpu for request in requests}
    n_networks = min(setting or devices.networks_per_gpu() for setting in settings)
    context.environment["networks_per_gpu"] = n_networks
    return n_networks


def _task_arguments(context: StageContext, device: str, folder: Path, request: Request) -> tuple[Any, ...]:
    """The arguments of `train_network` for one network, whose staging folder is created unless it can be resumed."""
    spec, staging, started = request.spec, publishing.staging_dir(folder), _read_started(folder)
    if context.run.force or not _can_resume(started, request):
        if started:
            context.say(f"{request}: the interrupted training is not continued (--force, new code, or less recorded)")
        publishing.create_staging_dir(folder)
        started = request.started()
        store.write_json(staging / store.STARTED, started)
    arrays = request.arrays.by_name()
    weights = None
    if isinstance(spec, NetworkSpec):
        weights = request.context.files.get(imagenet.input_name(spec.model))
    task = TrainingTask(
        spec=spec,
        device=device,
        staging_dir=str(staging),
        started=started,
        parent=os.getpid(),
        array_names=tuple(arrays),
        initial_weights=str(weights or ""),
    )
    return task, *arrays.values()


def _log_to(context: StageContext, single: bool) -> Callable[[str], None]:
    """Where the lines of a training in this process go: to the log file.

    Those of a single network go to the screen too: all of them on a terminal, above the progress bar; otherwise after
    each SCREEN_INTERVAL, and if an interrupted training continues.
    """
    last = time.monotonic()

    def log(message: str) -> None:
        nonlocal last
        is_due = sys.stderr.isatty() or time.monotonic() - last >= SCREEN_INTERVAL
        if single and (is_due or message.startswith("continuing")):
            last = time.monotonic()
            with tqdm.external_write_mode():
                context.say(message)
        else:
            context.run.log.write(f"{context.stage.name}: {message}")

    return log


def _publish(context: StageContext, folder: Path, request: Request, outcome: TrainingOutcome) -> None:
    """Write a trained network into its folder and publish it, unless its inputs have changed."""
    staging = publishing.staging_dir(folder)
    for name, content in outcome.files.items():
        store.write(staging / name, content)
    context.check_inputs()
    environment = {**context.environment, **outcome.environment, "training_seconds": round(outcome.seconds, 3)}
    numbers = {**outcome.numbers, "observations": request.observations()}
    outputs = sorted(outcome.files.keys() - {LOG})
    store.write_manifest(staging, request.spec.key(), outputs, numbers, environment)
    publishing.publish(folder, also_kept=(LOG,))


def _publish_if_complete(network: TrainedNetwork) -> None:
    """Publish a network if a run was interrupted after it had written everything."""
    staging = publishing.staging_dir(network.folder)
    manifest = _read_manifest(staging, network.spec)
    if manifest and not store.changed_outputs(staging, manifest):
        publishing.publish(network.folder, also_kept=(LOG,))


def network_summary(networks: Sequence[TrainedNetwork]) -> list[dict[str, Any]]:
    """What the manifest of a stage records of its networks."""
    return [{"name": network.spec.name, "folder": network.folder.name, **network.numbers()} for network in networks]

"""train: fit the networks of the recipe, and collect their weights in one file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.nn.networks import serialize_networks
from pipeline.reports import training_figures
from pipeline.reports.event_files import EventWriter
from pipeline.training import ensure, imagenet, plan
from pipeline.training.arrays import load_arrays
from pipeline.training.ensure import TrainedNetwork
from pipeline.training.pool import make_pool
from pipeline.training.specs import Spec
from pipeline.training.task import History
from pipeline.workflow import store
from pipeline.workflow.context import StageContext

# The largest share of the time that drawing the curves between epochs may take, and about what the first drawing takes,
# which imports matplotlib; the others take 0.1 s.
DRAWING_SHARE = 0.008
DRAWING_SECONDS = 0.5


def run(context: StageContext) -> dict[str, Any]:
    recipe = context.recipe
    weights = imagenet.add_inputs(context)
    requested = plan.network_specs(recipe, context, make_pool(context))
    arrays = load_arrays(recipe, context.files)
    requests = [ensure.Request(spec, arrays, context) for spec in requested]
    monitor = _Monitor(context, single=len(requested) == 1)
    start = time.monotonic()
    trained = ensure.ensure(context, requests, monitor.on_epoch, monitor.on_trained)
    context.environment |= {"training_seconds": round(time.monotonic() - start, 3), "threads": requested[0].threads}

    histories = {network.spec.name: _without_test_accuracy(network.history()) for network in trained}
    monitor.finish(histories)
    rows = [
        {**({"network": name} if len(trained) > 1 else {}), **row}
        for name, history in histories.items()
        for row in history
    ]
    store.write(
        context.output_dir / "history.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode()
    )
    if recipe.train.record:
        store.write(context.output_dir / "record.json", (trained[0].folder / "record.json").read_bytes())
    store.write(context.output_dir / "weights.safetensors", _collect_weights(trained))
    return {"networks": ensure.network_summary(trained)} | weights


def _collect_weights(trained: Sequence[TrainedNetwork]) -> bytes:
    """The weights of all networks as one file; for a single network, its own file."""
    paths = [network.folder / "weights.safetensors" for network in trained]
    if len(paths) == 1:
        return paths[0].read_bytes()
    return serialize_networks({network.spec.name: path for network, path in zip(trained, paths, strict=True)})


def _without_test_accuracy(history: History) -> History:
    """The history of a network that `compare` trained, without the column that only `compare` measures."""
    return [{name: value for name, value in row.items() if name != "test_accuracy"} for row in history]


class _Monitor:
    """Draws the curves and writes the tracker's event files while networks are trained."""

    def __init__(self, context: StageContext, single: bool) -> None:
        self.context, self.single = context, single
        self.next_drawing = time.monotonic() + DRAWING_SECONDS / DRAWING_SHARE
        self.finished: list[History] = []
        self.writer: EventWriter | None = None
        if context.run.tracker == "tensorboard":
            run_name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            folder = context.run.workspace / "data/logs/tensorboard" / context.run.name / run_name
            self.writer = EventWriter(folder)
            context.say(f"event files for TensorBoard in {folder}")

    def on_epoch(self, history: History) -> None:
        """Called with the history after each epoch of a network that is trained in this process."""
        if self.single:
            self._track("", history)
        self._draw([*self.finished, history])

    def on_trained(self, spec: Spec, history: History) -> None:
        """Called with each network that was trained."""
        self.finished.append(history)
        if not self.single:
            self._track(spec.name, history)
            self._draw(self.finished)

    def finish(self, histories: dict[str, History]) -> None:
        """Draw the curves of all networks, and track those that existed already."""
        self._draw(list(histories.values()), final=True)
        for name, history in histories.items():
            self._track("" if self.single else name, history)

    def _draw(self, histories: Sequence[History], final: bool = False) -> None:
        """Draw the curves, if that takes no more than DRAWING_SHARE of the time."""
        start = time.monotonic()
        if final or start >= self.next_drawing:
            selection = self.context.recipe.train.checkpoint_selection
            store.write(self.context.output_dir / "curves.png", training_figures.curves(histories, selection))
            now = time.monotonic()
            self.next_drawing = now + (now - start) / DRAWING_SHARE

    def _track(self, network: str, history: History) -> None:
        if self.writer:
            self.writer.write(history, network)

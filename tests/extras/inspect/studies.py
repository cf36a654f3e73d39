"""A small trained network and its study, for the tests of inspection and of its report."""

import functools
from types import SimpleNamespace

import numpy as np
import torch

from pipeline.dataset.views import apply_view
from pipeline.extras.inspect.study import NetworkStudy
from pipeline.nn.inference import as_input
from pipeline.nn.networks import LoadedNetwork, make_network
from pipeline.nn.recorder import Recorder
from pipeline.nn.trainer import seed_everything
from pipeline.recipes.settings import Inspect, Model
from pipeline.training.held_out import TrainingRows
from tests.conftest import digits_28

SEED, FOLD, EPOCHS = 1, 1, 3
# What is easily confused: a view of the images, pixels scaled by measured values, and a fold that is held out.
MODEL = Model(
    name="layers",
    layers=("conv 4 5x5", "relu", "max_pool 2", "dense 24", "relu"),
    view="deskewed",
    pixels="standardised",
)


@functools.cache
def make_study():
    """The network, its study and the inputs of the study; the network classifies most rows correctly."""
    images, labels = digits_28(200)
    rows = TrainingRows(images, labels, np.arange(len(labels)), (np.arange(len(labels)) % 3).astype(np.uint8))
    training = torch.from_numpy(rows.folds != FOLD)
    seen = apply_view(torch.from_numpy(images), MODEL.view)
    seed_everything(SEED)
    network = make_network(MODEL, torch.from_numpy(images)[training])
    recorder, optimizer = Recorder(network), torch.optim.Adam(network.parameters(), 0.01)
    record = [recorder.row(0)]
    for epoch in range(1, EPOCHS + 1):
        for _ in range(4):
            optimizer.zero_grad()
            logits = network(as_input(seen[training]))
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long()[training]).backward()
            recorder.add_gradients()
            optimizer.step()
        record.append(recorder.row(epoch))
    metadata = {"model": MODEL.model_dump(mode="json"), "precision": "fp32", "epoch": EPOCHS, "fit_all": False}
    metadata |= {"checkpoint_selection": "last", "fold": FOLD, "seed": SEED}
    loaded, progress = LoadedNetwork(network.eval(), metadata), []
    study = NetworkStudy(loaded, rows, Inspect(image=17, rows=30), "cpu", record, progress.append)
    return SimpleNamespace(
        network=network, study=study, rows=rows, seen=seen, record=record, progress=progress, metadata=metadata
    )

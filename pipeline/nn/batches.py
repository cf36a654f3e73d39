"""Which rows an epoch uses, in which batches, after which epochs the network is validated, and which epoch is kept."""

import math

import torch
from torch import Tensor

from pipeline.recipes.settings import Train
from pipeline.shapes import Float32, Int64

# With train.hard_example_fraction below 1: number of epochs that use all rows, so that the losses are known, and the
# fraction of the rows of later epochs that is chosen by loss, which matters little.
FULL_EPOCHS = 2
HARD_SHARE = 0.5
# An epoch uses at least this number of rows, or all rows: on small data, a fraction of the rows gives too few steps.
MIN_EPOCH_ROWS = 8192


def rows_per_epoch(epoch: int, n_rows: int, train: Train) -> int:
    """The number of rows that an epoch, counted from 1, uses."""
    if epoch <= FULL_EPOCHS:
        return n_rows
    return max(math.ceil(n_rows * train.hard_example_fraction), min(n_rows, MIN_EPOCH_ROWS))


def select_rows(row_losses: Float32[Tensor, " rows"], n_rows: int) -> Int64[Tensor, " n_rows"]:
    """Select rows in random order: all, or HARD_SHARE of them by their loss and the others at random."""
    device = row_losses.device
    if n_rows == len(row_losses):
        return torch.randperm(n_rows).to(device)
    ranking = row_losses.argsort(descending=True, stable=True)
    n_hard = round(n_rows * HARD_SHARE)
    hard, others = ranking[:n_hard], ranking[n_hard:]
    others = others[torch.randperm(len(others))[: n_rows - n_hard].to(device)]
    return torch.cat([hard, others])[torch.randperm(n_rows).to(device)]


def split_into_batches(n_rows: int, batch_size: int) -> list[int]:
    """The sizes of the batches of an epoch.

    The last batch takes the remainder. A remainder of one row is added to the batch before it: batch norm requires two
    rows.
    """
    n_full, rest = divmod(n_rows, batch_size)
    if rest == 1 and n_full:
        return [batch_size] * (n_full - 1) + [batch_size + 1]
    return [batch_size] * n_full + [rest] * bool(rest)


def is_validated(epoch: int, n_rows: int, train: Train) -> bool:
    """Whether the network is validated after an epoch, counted from 1: always, if the best epoch is kept.

    If the last epoch is kept, validation only informs: the last epoch is validated, and each after which the network
    has trained on `n_rows` rows since the previous validation. Validating every epoch took an eighth of the time of
    `quick`.

    n_rows: the number of training rows.
    """
    if train.checkpoint_selection == "best" or epoch <= FULL_EPOCHS or epoch == train.epochs:
        return True
    return (epoch - FULL_EPOCHS) % math.ceil(n_rows / rows_per_epoch(epoch, n_rows, train)) == 0


def selected_row(history: list[dict[str, float]], checkpoint_selection: str) -> dict[str, float]:
    """The row of the epoch that is kept: the first with the lowest validation loss ("best"), or the last."""
    return min(history, key=lambda row: row["validation_loss"]) if checkpoint_selection == "best" else history[-1]

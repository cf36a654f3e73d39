"""Environment metadata stored with every result: device, machine, versions, commit."""

import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from pipeline import ROOT

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "safetensors", "kaggle")


def describe_environment(device: str, gpus: Sequence[int] | None = None) -> dict[str, Any]:
    """The device, the machine and the versions of the software, as JSON can hold them.

    gpus: the numbers of the CUDA GPUs that are used, by default of all that compute.
    """
    environment = {
        "device": device,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
        "commit": _commit(),
    }
    if device == "cuda":
        from pipeline.machine.devices import describe_gpus  # not at the top: it imports torch

        environment |= describe_gpus(gpus)
    return environment


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit() -> str | None:
    """The pipeline's git commit, with a "+" if files differ from it; None without git or outside of a checkout."""
    # With --git-dir, git searches no repository around this folder, which would be a foreign one.
    command = ["git", "--git-dir=.git", "--work-tree=.", "describe", "--always", "--dirty=+", "--abbrev=40", "--match="]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None

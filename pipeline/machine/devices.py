"""The devices of this machine: which of them compute with this PyTorch, why others do not, and what they are."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import StageError

DRIVER_TIMEOUT = 10  # seconds for nvidia-smi
BYTES_PER_NETWORK = 16 << 30  # of free GPU memory: a safe default for small networks
# Processes on a GPU share its time: each fills the gaps that the others leave while their CPU core prepares kernels.
MAX_PER_GPU = 4
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # versions 2 and 1


def choose_device(requested: str) -> str:
    """The device to compute on. Raises StageError if this machine cannot compute on the requested device."""
    if requested == "auto":
        requested = next(device for device in ("cuda", "mps", "cpu") if not why_unusable(device))
    if reason := why_unusable(requested):
        raise StageError(f"--device {requested}: {reason}; omit --device or use --device cpu")
    if requested == "cuda":
        torch.cuda.set_device(usable_gpus()[0])
    return requested


def describe_choice(device: str, requested: str) -> str:
    """The chosen device, and if it is the CPU without being requested, why no other is used."""
    if device == "cpu" and requested == "auto":
        return f"device: cpu ({why_unusable('mps' if torch.backends.mps.is_built() else 'cuda')})"
    if device == "cuda":
        return f"device: {', '.join(sorted({str(_describe_gpu(number)['name']) for number in usable_gpus()}))}"
    return f"device: {device}"


@functools.cache
def why_unusable(device: str) -> str:
    """Why this machine cannot compute on a kind of device, and what to do about it; "" if it can."""
    if device == "cpu":
        return ""
    if device == "mps":
        if not torch.backends.mps.is_available():
            return "this PyTorch or this machine does not support Apple's GPUs (MPS)"
        return _why_it_does_not_compute("mps")
    if not torch.backends.cuda.is_built():
        return (
            f"PyTorch {torch.__version__} is built without CUDA; for an NVIDIA GPU, install a CUDA build: "
            "https://pytorch.org/get-started/locally"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of unsupported GPUs, which `usable_gpus` detects
            torch.cuda.init()
    except Exception as error:  # PyTorch raises RuntimeError or AssertionError, with these texts
        return _explain_missing_gpu(str(error))
    if usable_gpus():
        return ""
    return _why_it_does_not_compute("cuda:0")


@functools.cache
def usable_gpus() -> tuple[int, ...]:
    """The numbers of the CUDA GPUs that compute."""
    return tuple(n for n in range(torch.cuda.device_count()) if not _why_it_does_not_compute(f"cuda:{n}"))


def _explain_missing_gpu(message: str) -> str:
    """What to do about an error of torch.cuda.init()."""
    if "driver on your system is too old" in message:
        return (
            f"the NVIDIA driver is too old for PyTorch {torch.__version__}, which needs CUDA {torch.version.cuda}: "
            "update the driver, or install a PyTorch build for an older CUDA"
        )
    if "Found no NVIDIA driver" in message:
        return "there is no NVIDIA driver; for an NVIDIA GPU, install one"
    if "No CUDA GPUs are available" in message:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return "no NVIDIA GPU" + (f" is visible: CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else "")
    return f"CUDA does not start ({' '.join(message.split())[:200]})"


def _why_it_does_not_compute(device: str) -> str:
    """Why a small convolution fails on a device; "" if it succeeds.

    torch.cuda.is_available() is also true for a GPU that the installed PyTorch has no kernels for.
    """
    try:
        _convolve(device)
    except Exception as error:  # of many types
        message = " ".join(str(error).split())
        if device == "mps":
            return f"Apple's GPU does not compute ({message[:200]})"
        return _explain_failed_gpu(int(device.removeprefix("cuda:")), message)
    return ""


def _convolve(device: str) -> None:
    images, weight = torch.ones(1, 1, 8, 8, device=device), torch.ones(1, 1, 3, 3, device=device)
    if torch.nn.functional.conv2d(images, weight).sum().item() != 6 * 6 * 9:
        raise RuntimeError("a convolution has a wrong result")


def _explain_failed_gpu(number: int, message: str) -> str:
    gpu = _describe_gpu(number)
    name = f"{gpu['name']} (compute capability {gpu['compute_capability']})"
    if "no kernel image" in message or "ARCH_MISMATCH" in message:
        architectures = ", ".join(torch.cuda.get_arch_list())
        return (
            f"PyTorch {torch.__version__} has no kernels for {name}, only for {architectures}: install a PyTorch build "
            "that supports this GPU (older GPUs: a build for CUDA 12.6)"
        )
    if "out of memory" in message:
        return f"{name} has no free memory: other processes use it"
    return f"{name} does not compute ({message[:200]})"


def _describe_gpu(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }


def describe_gpus(gpus: Sequence[int] | None = None) -> dict[str, Any]:
    """GPUs, by default all that compute, and the versions of driver, CUDA and cuDNN, as JSON can hold them."""
    return {
        "gpus": [_describe_gpu(number) for number in (usable_gpus() if gpus is None else gpus)],
        "driver": _driver_version(),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": _cudnn_version(),
    }


def _cudnn_version() -> int | None:
    """The version of cuDNN; None if it does not support a GPU of this machine, which need not be the one in use."""
    try:
        version: int | None = torch.backends.cudnn.version()
    except RuntimeError:
        return None
    return version


@functools.cache
def _driver_version() -> str | None:
    """The version of the NVIDIA driver; None without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.split("\n")[0].strip() or None


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if os.name == "posix" else []
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits, default=1 << 62)


def require_memory(needed: int, what: str) -> None:
    """Raise StageError if the machine has less memory than `needed` bytes."""
    if needed > total_memory():
        needed_gb, total_gb = needed / 2**30, total_memory() / 2**30
        raise StageError(f"{what} needs at least {needed_gb:,.1f} GiB of memory, but this machine has {total_gb:,.1f}")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the memory of a GPU is too small, as PyTorch, CUDA, cuBLAS and cuDNN report it."""
    return any(text in str(error) for text in ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED"))


def out_of_memory(section: str) -> StageError:
    """The error if the memory of a GPU is too small. section: of the settings, "train" or "gan"."""
    return StageError(
        f"the memory of the GPU is too small: try a smaller {section}.batch_size, or, for several networks, "
        "--set ensemble.networks_per_gpu=1"
    )


def release_memory() -> None:
    """Return the unused memory of this process on the current GPU, for the other processes that use it."""
    # PyTorch 2.11 keeps the workspaces that cuBLAS has allocated while a CUDA graph was recorded.
    if clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None):  # missing without CUDA
        clear()
    torch.cuda.empty_cache()


def networks_per_gpu() -> int:
    """How many networks to train on each GPU at the same time."""
    gpus = usable_gpus()
    free = min(torch.cuda.mem_get_info(number)[0] for number in gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_PER_GPU, cores // len(gpus), free // BYTES_PER_NETWORK))

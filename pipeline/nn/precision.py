"""Floating-point precision and memory layout: what each device computes fast, and the settings of its libraries."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

LARGE_BATCH = 2048  # images of 28x28 pixels


def choose_precision(precision: str, device: str) -> str:
    """The value of `train.precision`; for "auto", the first of bf16, fp16 and fp32 that the device computes fast.

    It depends on nothing but the device, so that a machine always gives the same weights.
    """
    if precision != "auto":
        return precision
    return next(precision for precision in ("bf16", "fp16", "fp32") if is_fast(precision, device))


def is_fast(precision: str, device: str) -> bool:
    """Whether a device has instructions for a precision. On MPS, which lacks some operations, only fp32 counts."""
    if precision == "fp32":
        return True
    if device == "cuda":
        if precision == "bf16":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return bool(torch.cuda.get_device_capability() >= (7, 0))  # the first with tensor cores
    if device == "cpu" and precision == "bf16":
        return any(getattr(torch.cpu, check)() for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return False


def inference_precision(precision: str, device: str) -> str:
    """The precision of predictions by a network that was trained in `precision`, perhaps on another device.

    Without instructions for it, fp32 is faster, and at least as exact.
    """
    return precision if is_fast(precision, device) else "fp32"


def keeps_gpu_busy(network: nn.Module, batch_size: int) -> bool:
    """Whether the time of a training step is determined by the GPU's computations, not by the CPU's kernel launches.

    Smaller steps are replayed as CUDA graphs. cuDNN tries several algorithms for large steps only: on an H200, this
    took 1 to 7 s in each process; it made the steps of `dropout_cnn` (4,096 images) 7% faster, those of `modern/` 3 to
    5%, and those of `quick` and `standard` no faster.
    """
    side = getattr(network, "side", 28)  # a network for ImageNet enlarges the images
    return bool(batch_size * side**2 >= LARGE_BATCH * 28**2)


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[None]:
    """The context in which convolutions and matrix products run in `precision`, "fp32", "bf16" or "fp16"."""
    return torch.autocast(device, DTYPES[precision]) if precision in DTYPES else contextlib.nullcontext()


def choose_memory_format(device: str, precision: str) -> torch.memory_format:
    """The memory format of weights and activations.

    cuDNN's bf16 and fp16 kernels for tensor cores and the CPU's convolutions are fastest with channels last. In fp32,
    cuDNN is slower with it on GPUs before Ampere, and so is MPS.
    """
    is_channels_last = device == "cpu" or (device == "cuda" and precision in DTYPES)
    return torch.channels_last if is_channels_last else torch.contiguous_format


@contextlib.contextmanager
def library_settings(device: str, benchmark: bool = False, deterministic: bool = False) -> Iterator[None]:
    """Set how CUDA's libraries compute, and restore the former settings afterwards; no effect on other devices.

    fp32 is exact: TF32, which has 10 bits of mantissa, is not used. On GPUs that have it, "auto" selects bf16.
    benchmark: cuDNN tries several algorithms for each shape, and uses the fastest: for trainings with large batches.
    deterministic: only algorithms with reproducible results; an operation without one raises RuntimeError. It requires
        the environment variable that `pipeline/__init__.py` sets.
    """
    if device != "cuda":
        yield
        return
    matmul_precision = torch.get_float32_matmul_precision()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    fill_memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(deterministic)
        # No result depends on it, and it takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=benchmark and not deterministic, deterministic=deterministic, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul_precision)
        torch.use_deterministic_algorithms(was_deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill_memory  # type: ignore[attr-defined]


def describe_settings(device: str, precision: str, benchmark: bool, deterministic: bool) -> dict[str, Any]:
    """The choices above for a training, as JSON can hold them."""
    settings: dict[str, Any] = {"memory_format": str(choose_memory_format(device, precision)).split(".")[1]}
    if device == "cuda":
        settings |= {"tf32": False, "cudnn_benchmark": benchmark and not deterministic, "deterministic": deterministic}
    return settings

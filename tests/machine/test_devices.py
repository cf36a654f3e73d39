"""The choice of the device: GPUs that do not compute are named with their cause, and what to do about it."""

import os
import subprocess
import types
import warnings

import pytest
import torch

from pipeline.errors import StageError
from pipeline.machine import devices

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
NO_KERNELS = (
    "CUDA error: no kernel image is available for execution on the device\n"
    "CUDA kernel errors might be asynchronously reported at some other API call."
)


@pytest.fixture(autouse=True)
def clear_caches():
    for function in (devices.why_unusable, devices.usable_gpus, devices._driver_version):
        function.cache_clear()
    yield
    for function in (devices.why_unusable, devices.usable_gpus, devices._driver_version):
        function.cache_clear()


@pytest.fixture
def cuda(monkeypatch):
    """A PyTorch with CUDA and some GPUs: `cuda({"Tesla T4": "", "Tesla P100": "error of the convolution"})`."""

    def install(gpus, init_error=""):
        def init():
            if init_error:
                raise RuntimeError(init_error)

        def convolve(device):
            if error := gpus[names[int(device[-1])]]:
                raise RuntimeError(error)

        def describe(number):
            return types.SimpleNamespace(name=names[number], major=6 + number, minor=0, total_memory=16 * 2**30)

        names = list(gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_properties", describe)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setattr(devices, "_convolve", convolve)
        return chosen

    chosen = []
    return install


@pytest.mark.parametrize(
    ("gpus", "init_error", "cause", "remedy"),
    [
        ({}, OLD_DRIVER, "the NVIDIA driver is too old for PyTorch", "update the driver"),
        ({}, NO_DRIVER, "there is no NVIDIA driver", "install one"),
        ({}, "No CUDA GPUs are available", "no NVIDIA GPU", ""),
        ({}, "CUDA unknown error", "CUDA does not start (CUDA unknown error)", ""),
        (
            {"Tesla P100": NO_KERNELS},
            "",
            "has no kernels for Tesla P100 (compute capability 6.0), only for sm_75, sm_90",
            "install a PyTorch build",
        ),
        ({"Tesla P100": "CUDA out of memory."}, "", "Tesla P100 (compute capability 6.0) has no free memory", ""),
        ({"Tesla P100": "CUDA error: unspecified"}, "", "does not compute (CUDA error: unspecified)", ""),
    ],
)
def test_a_gpu_that_does_not_compute_is_explained(cuda, gpus, init_error, cause, remedy):
    cuda(gpus, init_error)
    assert devices.choose_device("auto") == "cpu"
    line = devices.describe_choice("cpu", "auto")
    assert line.startswith("device: cpu (") and cause in line and remedy in line and "\n" not in line
    with pytest.raises(StageError) as raised:
        devices.choose_device("cuda")
    assert cause in str(raised.value) and str(raised.value).endswith("omit --device or use --device cpu")


def test_pytorchs_warnings_of_unsupported_gpus_are_not_shown(cuda, monkeypatch, recwarn):
    cuda({"Tesla P100": NO_KERNELS})
    monkeypatch.setattr(torch.cuda, "init", lambda: warnings.warn("Found GPU0, which is too old", stacklevel=1))
    assert "Tesla P100" in devices.why_unusable("cuda") and not recwarn.list


def test_hidden_gpus_are_explained(cuda, monkeypatch):
    cuda({}, "No CUDA GPUs are available")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.why_unusable("cuda") == "no NVIDIA GPU is visible: CUDA_VISIBLE_DEVICES is ''"


def test_a_gpu_that_computes_is_chosen_and_named(cuda):
    chosen = cuda({"Tesla P100": NO_KERNELS, "Tesla T4": "", "Tesla T4 (2)": ""})
    assert devices.choose_device("auto") == devices.choose_device("cuda") == "cuda"
    assert devices.usable_gpus() == (1, 2) and set(chosen) == {1}
    assert devices.describe_choice("cuda", "auto") == "device: Tesla T4, Tesla T4 (2)"


def test_a_build_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    assert devices.describe_choice("cpu", "auto").startswith("device: cpu (PyTorch ")
    assert "is built without CUDA" in devices.why_unusable("cuda")
    assert devices.describe_choice("cpu", "cpu") == "device: cpu"


def test_apples_gpu_is_used_if_it_computes(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_convolve", lambda device: None)
    assert devices.choose_device("auto") == "mps"
    devices.why_unusable.cache_clear()
    monkeypatch.setattr(devices, "_convolve", lambda device: 1 / 0)
    assert devices.choose_device("auto") == "cpu"


def test_the_convolution_of_the_check_computes_on_this_cpu():
    devices._convolve("cpu")


@pytest.mark.parametrize(
    ("free_gib", "cores", "expected"),
    [
        ((80, 80), 16, 4),  # limited by MAX_PER_GPU
        ((80, 80), 4, 2),  # by cores
        ((80, 50), 16, 3),  # by the memory of the fullest GPU
        ((15, 15), 16, 1),  # at least one
    ],
)
def test_networks_per_gpu(cuda, monkeypatch, free_gib, cores, expected):
    cuda({"T4": "", "T4 (2)": ""})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free_gib[number] * 2**30, 80 * 2**30))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert devices.networks_per_gpu() == expected


def test_versions_are_recorded(cuda, monkeypatch):
    cuda({"Tesla T4": ""})
    run = types.SimpleNamespace(stdout="570.12\n570.12\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: run)
    description = devices.describe_gpus()
    assert description["gpus"] == [{"name": "Tesla T4", "compute_capability": "6.0", "memory_gib": 16.0}]
    assert description["driver"] == "570.12" and description["cuda"] == "12.8" and "cudnn" in description


def test_only_the_selected_gpus_are_described_and_started(cuda, monkeypatch):
    cuda({"T4": "", "P4": ""})
    monkeypatch.setattr(devices, "_convolve", None)
    assert [gpu["name"] for gpu in devices.describe_gpus([1])["gpus"]] == ["P4"]


def test_a_gpu_that_cudnn_does_not_support_does_not_prevent_the_use_of_another(cuda, monkeypatch):
    def version():
        raise RuntimeError("cuDNN version 91002 is not compatible with devices with SM < 7.5")

    cuda({"GTX 1080": NO_KERNELS, "RTX 4090": ""})
    monkeypatch.setattr(torch.backends.cudnn, "version", version)
    description = devices.describe_gpus()
    assert description["cudnn"] is None and [gpu["name"] for gpu in description["gpus"]] == ["RTX 4090"]

"""Seconds per 10,000 images that the frozen layers of VGG16 and AlexNet take.

`python -m tests.benchmarks.features [--device cuda] [--images 500] [--side 32 ...]` prints a table, with random images.
"""

import argparse
import time

import torch

from pipeline.nn.networks import make_network
from pipeline.nn.precision import choose_memory_format, is_fast
from pipeline.recipes.settings import TRANSFER_MODELS, Model
from pipeline.training.extraction import extract_features


def measure(name: str, side: int, images: torch.Tensor, device: str, precision: str) -> float:
    """Seconds per 10,000 images, after a warm-up."""
    network = make_network(Model(name=name, side=side))
    network.to(device, memory_format=choose_memory_format(device, precision))
    extract_features(network, images[:32], "plain", device, precision)
    start = time.perf_counter()
    extract_features(network, images, "plain", device, precision)
    return (time.perf_counter() - start) * 10_000 / len(images)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.features", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", type=int, nargs="+", default=(32, 64, 96))
    options = parser.parse_args()
    images = torch.randint(0, 256, (options.images, 28, 28), dtype=torch.uint8).to(options.device)
    precisions = [precision for precision in ("fp32", "bf16") if is_fast(precision, options.device)]
    print("| model | side |" + "".join(f" {precision} |" for precision in precisions))
    print("|---|---|" + "---:|" * len(precisions))
    for name, smallest in TRANSFER_MODELS.items():
        for side in options.side:
            if side >= smallest:
                times = [measure(name, side, images, options.device, precision) for precision in precisions]
                print(f"| {name} | {side} |" + "".join(f" {seconds:.0f} |" for seconds in times), flush=True)


if __name__ == "__main__":
    main()

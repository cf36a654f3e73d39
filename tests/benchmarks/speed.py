"""Compare the speed and memory of the published code and of the pipeline.

`python -m tests.benchmarks.speed [--device cuda] [--quick] [--part NAME ...]` measures both sides in turn on the same
data, each in a process of its own, which reports its time (without imports) and its peak memory. A ratio is the median
over pairs of measurements: published by ours, or ours by published for figures where higher is better. The data are the
competition's zip file at DIGIT_RECOGNIZER_ZIP or in data/raw, or else random images of the same size.

On a GPU, a part takes at most five minutes: it ends with fewer pairs, or without a result, which the table says. The
time of 150 epochs of dropout_cnn is extrapolated from those that end within a minute. The JSON file is written after
each part.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from pipeline import ROOT
from tests.benchmarks.sides import PARTS, ROWS

UNITS = {"memory": "MB", "train": "images/s", "train_exact": "images/s", "small_batches": "images/s"}  # others: seconds
REQUIRED_RATIOS = {"read": 3, "cached": 100, "augment": 25, "memory": 4, "train": 3}
MAX_SECONDS = {"first_batch": 4.0, "status": 0.4}  # of parts without a published side
PAIRS = {"read": 5, "cached": 5, "memory": 1, "status": 5}  # others: 3
GPU_PARTS = (*PARTS, "train_exact")
MAX_GPU_PART_SECONDS = 300


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="one pair of each part, few batches: under 10 minutes")
    parser.add_argument("--part", action="append", choices=GPU_PARTS, help="only this part; can be repeated")
    parser.add_argument("--scaling", action="store_true", help="only the pipeline's cost from 5,000 to 40,000 rows")
    parser.add_argument("--accuracy", action="store_true", help="only the accuracy of dropout_cnn on both sides")
    parser.add_argument("--recording", action="store_true", help="only the cost of train.record")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.device == "cuda":
        from pipeline.machine.devices import why_unusable

        if reason := why_unusable("cuda"):
            parser.error(f"--device cuda: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        archive, source = _find_data(Path(folder))
        print(f"data: {source}; {_describe_machine(options.device)}", flush=True)
        about = {
            "command": " ".join(["python -m tests.benchmarks.speed", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": _describe_machine(options.device),
            "data": source,
        }

        def save(results):
            if options.json:
                options.json.write_text(json.dumps({**results, "about": about}, indent=2) + "\n")

        benchmark = Benchmark(Path(folder), archive, options, save)
        benchmark.measure("ours", "unpack")
        if options.scaling:
            save(benchmark.scaling())
        elif options.accuracy:
            save(benchmark.accuracy())
        elif options.recording:
            save(benchmark.recording())
        else:
            benchmark.speed()


class Benchmark:
    """Measurements of one side of one part, each in a process of its own."""

    def __init__(self, folder, archive, options, save):
        """save: called with the results after each part."""
        self.folder, self.archive, self.options, self.save = folder, archive, options, save

    def measure(self, side, part, timeout=None, **more):
        """The result of a measurement: "value" and "peak" (megabytes). Raises subprocess.SubprocessError."""
        task = {"side": side, "part": part, "folder": str(self.folder), "archive": str(self.archive)}
        task |= {"device": self.options.device, "quick": self.options.quick, "start": time.time(), **more}
        command = [sys.executable, "-m", "tests.benchmarks.sides", json.dumps(task)]
        process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=timeout, check=True)
        return json.loads(process.stdout.splitlines()[-1])

    def speed(self):
        """Measure every part, both sides in turn, and print a row of the table after each."""
        columns = f"{'part':12} {'':9} {'published':>10} {'ours':>10} {'ratio':>8} {'required':>8}   peak memory, MB"
        print(columns, flush=True)
        results = {}
        for part in self.options.part or (PARTS if self.options.device == "cpu" else GPU_PARTS):
            try:
                if pairs := self._measure_pairs(part):
                    results[part] = summarize(part, pairs)
                else:
                    results[part] = {"error": f"no pair within {MAX_GPU_PART_SECONDS} s"}
            except subprocess.CalledProcessError as error:
                results[part] = {"error": f"a side failed with exit code {error.returncode}"}
            error = results[part].get("error")
            print(f"{part:12} {error}" if error else _format_row(part, results[part]), flush=True)
            self.save(results)
        if failed := [part for part, result in results.items() if "failed" in result.get("error", "")]:
            raise SystemExit(f"error: {', '.join(failed)} failed")

    def _measure_pairs(self, part):
        """The measurements of both sides in turn; on a GPU, those that end within MAX_GPU_PART_SECONDS."""
        sides = ("ours",) if part in MAX_SECONDS else ("published", "ours")
        n_pairs = 1 if self.options.quick else PAIRS.get(part, 3)
        end = time.monotonic() + MAX_GPU_PART_SECONDS if self.options.device == "cuda" else math.inf
        pairs = []
        with contextlib.suppress(subprocess.TimeoutExpired):
            for _ in range(n_pairs):
                pair = {}
                for side in sides:
                    timeout = None if end == math.inf else max(1.0, end - time.monotonic())
                    pair[side] = self.measure(side, part, timeout)
                pairs.append(pair)
        return pairs

    def scaling(self):
        """The pipeline's time and memory with 5,000, 10,000, 20,000 and 40,000 rows."""
        print(f"{'rows':>8} {'prepare, augment':>17} {'training':>10} {'peak memory':>12}")
        runs = []
        for n_rows in (5_000, 10_000, 20_000, 40_000):
            run = {"rows": n_rows, **self.measure("ours", "scaling", rows=n_rows)}
            runs.append(run)
            print(f"{n_rows:8,} {run['prepare']:15.2f} s {run['train']:8.2f} s {run['peak']:9.0f} MB", flush=True)
        growth = {name: runs[-1][name] / runs[0][name] for name in ("rows", "prepare", "train", "peak")}
        print(", ".join(f"{name} x{factor:.1f}" for name, factor in growth.items()))
        return {"scaling": {"runs": runs, "growth": growth}}

    def accuracy(self):
        """The accuracy of dropout_cnn on both sides: the same rows, settings and short schedule, three seeds."""
        results = {"published": [], "ours": []}
        for seed in range(1 if self.options.quick else 3):
            for side, accuracies in results.items():
                accuracies.append(self.measure(side, "accuracy", seed=seed)["value"])
                print(f"seed {seed}, {side}: {accuracies[-1]:.4f}", flush=True)
        for side, accuracies in results.items():
            std = statistics.stdev(accuracies) if len(accuracies) > 1 else 0
            print(f"{side}: mean {statistics.mean(accuracies):.4f}, std {std:.4f}, {len(accuracies)} seeds")
        return {"accuracy": results}

    def recording(self):
        """The time of an epoch with train.record relative to one without, for large and for small batches."""
        results = {}
        for recipe in ("quick", "ladder/lenet_batch32", "ladder/deeper"):
            n_processes = 1 if self.options.quick else 3
            ratios = [self.measure("ours", "recording", recipe=recipe)["value"] for _ in range(n_processes)]
            results[recipe] = {"ratio": statistics.median(ratios), "ratios": ratios}
            listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"{recipe}: {results[recipe]['ratio']:.3f} times as long (by process: {listed})", flush=True)
        return {"recording": results}


def summarize(part, pairs):
    """Medians over pairs of measurements, and the median of the ratios of the pairs."""
    summary = {"ours": statistics.median(pair["ours"]["value"] for pair in pairs), "pairs": len(pairs)}
    summary["peak_mb"] = {side: max(pair[side]["peak"] for pair in pairs) for side in pairs[0]}
    if "published" in pairs[0]:
        summary["published"] = statistics.median(pair["published"]["value"] for pair in pairs)
        ratios = [pair["published"]["value"] / pair["ours"]["value"] for pair in pairs]
        if UNITS.get(part) == "images/s":
            ratios = [1 / ratio for ratio in ratios]
        summary |= {"ratio": statistics.median(ratios), "ratios": ratios}
    else:
        summary["limit"] = MAX_SECONDS[part]
    summary["unit"] = UNITS.get(part, "s")
    for side, measurement in pairs[-1].items():
        if "more" in measurement:
            summary["more" if side == "ours" else f"{side}_more"] = measurement["more"]
    return summary


def _format_row(part, summary):
    """A row of the table."""

    def format_value(value):
        return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"

    ours, published = format_value(summary["ours"]), format_value(summary.get("published"))
    ratio = f"{summary['ratio']:.1f}x" if "ratio" in summary else ""
    required = f"< {MAX_SECONDS[part]}" if part in MAX_SECONDS else ""
    if part in REQUIRED_RATIOS:
        required = f"{REQUIRED_RATIOS[part]}x"
    peak = ", ".join(f"{side} {value:.0f}" for side, value in summary["peak_mb"].items())
    precision = summary.get("more", {}).get("precision")
    note = f" ({precision}, published fp32)" if precision else ""
    return f"{part:12} {summary['unit']:9} {published:>10} {ours:>10} {ratio:>8} {required:>8}   {peak}{note}"


def _find_data(folder):
    """The path of a zip file with the three tables, and a description of the data."""
    path = Path(os.environ.get("DIGIT_RECOGNIZER_ZIP") or ROOT / "data" / "raw" / "digit-recognizer.zip")
    if path.is_file():
        return path.resolve(), "the competition's"
    import numpy as np

    print(f"{path} does not exist (DIGIT_RECOGNIZER_ZIP sets another path): using random images", flush=True)
    generator = np.random.default_rng(0)
    pixels = [f"pixel{i}" for i in range(784)]
    path = folder / "random.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, n_rows in (("train", ROWS), ("test", ROWS * 2 // 3)):
            # 81% of the pixels are 0, as in the competition's images.
            values = generator.integers(0, 256, (n_rows, 784)) * (generator.random((n_rows, 784)) < 0.19)
            header = pixels
            if name == "train":
                values, header = np.column_stack([generator.integers(0, 10, n_rows), values]), ["label", *pixels]
            lines = [",".join(map(str, row)) for row in values.tolist()]
            archive.writestr(f"{name}.csv", "\n".join([",".join(header), *lines, ""]))
        lines = [f"{i},0" for i in range(1, ROWS * 2 // 3 + 1)]
        archive.writestr("sample_submission.csv", "\n".join(["ImageId,Label", *lines, ""]))
    return path, "random images of the competition's size"


def _describe_machine(device):
    """Cores, processor and PyTorch version; on CUDA also the GPU."""
    import torch

    processor = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        lines = [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].split(":")[1].strip() if lines else processor
    machine = f"{os.cpu_count()} cores, {processor}, PyTorch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {machine}" if device == "cuda" else machine


if __name__ == "__main__":
    main()

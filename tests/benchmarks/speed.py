"""How fast the pipeline is beside the published way: `python -m tests.benchmarks.speed [--device cuda] [--quick]`.

Both sides run in turn on the same data, each measurement in a process of its own, which tells its time (without
imports) and its peak memory. A ratio is the median over pairs of published by ours, or of ours by published where
more is better. Data: the competition's zip where DIGIT_RECOGNIZER_ZIP says, else in data/raw, else random images of
the same size.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tests.benchmarks.sides import PARTS, ROWS

ROOT = Path(__file__).parent.parent.parent
UNITS = {
    "memory": "MB",
    "train": "images/s",
    "train_exact": "images/s",
    "small_batches": "images/s",
}  # the others: seconds
WANTED = {"read": 3, "cached": 100, "augment": 25, "memory": 4, "train": 3}
LIMITS = {"first_batch": 4.0, "status": 0.4}
PAIRS = {"read": 5, "cached": 5, "memory": 1, "train": 3, "first_batch": 3, "status": 5}  # of augment: 3


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed", description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="one pair of each, few batches: under 10 minutes")
    parser.add_argument("--scaling", action="store_true", help="only: our cost from 5,000 to 40,000 rows")
    parser.add_argument("--accuracy", action="store_true", help="only: dropout_cnn's accuracy, published way and ours")
    parser.add_argument("--recording", action="store_true", help="only: what train.record costs")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    call = parser.parse_args()
    if call.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: there is no CUDA device here")
    with tempfile.TemporaryDirectory() as folder:
        archive, source = _data(Path(folder))
        print(f"data: {source}; {_machine(call.device)}", flush=True)
        measure = Measure(Path(folder), archive, call)
        measure("ours", "unpack")
        if call.scaling:
            results = measure.scaling()
        elif call.accuracy:
            results = measure.accuracy()
        elif call.recording:
            results = measure.recording()
        else:
            results = measure.speed()
    if call.json:
        about = {
            "command": " ".join(["python -m tests.benchmarks.speed", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": _machine(call.device),
            "data": source,
        }
        call.json.write_text(json.dumps({**results, "about": about}, indent=2) + "\n")


class Measure:
    """Runs one side of one part in a process of its own, and keeps what it told."""

    def __init__(self, folder, archive, call):
        self.folder, self.archive, self.call = folder, archive, call

    def __call__(self, side, part, **more):
        task = {"side": side, "part": part, "folder": str(self.folder), "archive": str(self.archive)}
        task |= {"device": self.call.device, "quick": self.call.quick, "began": time.time(), **more}
        run = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.sides", json.dumps(task)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        if run.returncode:
            raise SystemExit(f"error: {side} {part} failed with exit code {run.returncode}")
        return json.loads(run.stdout.splitlines()[-1])

    def speed(self):
        """Every part, both sides in turn; prints a row of the table as each is there."""
        print(
            f"{'part':12} {'':9} {'published':>10} {'ours':>10} {'ratio':>8} {'wanted':>8}   peak memory, MB",
            flush=True,
        )
        results = {}
        for part in PARTS if self.call.device == "cpu" else (*PARTS, "train_exact"):
            pairs = []
            for _ in range(1 if self.call.quick else PAIRS.get(part, 3)):
                sides = ("ours",) if part in LIMITS else ("published", "ours")
                pairs.append({side: self(side, part) for side in sides})
            results[part] = _summary(part, pairs)
            print(_row(part, results[part]), flush=True)
        return results

    def scaling(self):
        """Our time and memory with 5,000, 10,000, 20,000 and 40,000 rows."""
        print(f"{'rows':>8} {'prepare, augment':>17} {'training':>10} {'peak memory':>12}")
        runs = []
        for rows in (5_000, 10_000, 20_000, 40_000):
            runs.append({"rows": rows, **self("ours", "scaling", rows=rows)})
            told = runs[-1]
            print(f"{rows:8,} {told['prepare']:15.2f} s {told['train']:8.2f} s {told['peak']:9.0f} MB", flush=True)
        first, last = runs[0], runs[-1]
        growth = {name: last[name] / first[name] for name in ("rows", "prepare", "train", "peak")}
        print(", ".join(f"{name} x{factor:.1f}" for name, factor in growth.items()))
        return {"scaling": {"runs": runs, "growth": growth}}

    def accuracy(self):
        """dropout_cnn both ways: same rows, same settings, three seeds, a shortened schedule."""
        results = {"published": [], "ours": []}
        for seed in range(1 if self.call.quick else 3):
            for side, found in results.items():
                found.append(self(side, "accuracy", seed=seed)["value"])
                print(f"seed {seed}, {side}: {found[-1]:.4f}", flush=True)
        for side, found in results.items():
            deviation = statistics.stdev(found) if len(found) > 1 else 0
            print(f"{side}: mean {statistics.mean(found):.4f}, deviation {deviation:.4f}, {len(found)} seeds")
        return {"accuracy": results}

    def recording(self):
        """An epoch with train.record and without, in turn, of large and of small batches."""
        results = {}
        for recipe in ("quick", "ladder/lenet_batch32", "ladder/deeper"):
            ratios = [self("ours", "recording", recipe=recipe)["value"] for _ in range(1 if self.call.quick else 3)]
            results[recipe] = {"ratio": statistics.median(ratios), "ratios": ratios}
            shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(
                f"{recipe}: {statistics.median(ratios):.3f} times as long with train.record (each process: {shown})",
                flush=True,
            )
        return {"recording": results}


def _summary(part, pairs):
    """Medians over pairs; ratios are taken within each."""
    summary = {"ours": statistics.median(pair["ours"]["value"] for pair in pairs), "pairs": len(pairs)}
    summary["peak_mb"] = {side: max(pair[side]["peak"] for pair in pairs) for side in pairs[0]}
    if "published" in pairs[0]:
        summary["published"] = statistics.median(pair["published"]["value"] for pair in pairs)
        quotients = [pair["published"]["value"] / pair["ours"]["value"] for pair in pairs]
        if UNITS.get(part) == "images/s":
            quotients = [1 / quotient for quotient in quotients]
        summary["ratio"] = statistics.median(quotients)
        summary["ratios"] = quotients
    else:
        summary["limit"] = LIMITS[part]
    summary["unit"] = UNITS.get(part, "s")
    extra = pairs[-1]["ours"].get("more")
    return {**summary, **({"more": extra} if extra else {})}


def _row(part, found):
    def shown(value):
        return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"

    wanted = f"{WANTED[part]}x" if part in WANTED else f"< {LIMITS[part]}" if part in LIMITS else ""
    ratio = f"{found['ratio']:.1f}x" if "ratio" in found else ""
    peak = ", ".join(f"{side} {value:.0f}" for side, value in found["peak_mb"].items())
    ours, published = shown(found["ours"]), shown(found.get("published"))
    precision = found.get("more", {}).get("precision")
    note = f" ({precision}, published fp32)" if precision else ""
    return f"{part:12} {found['unit']:9} {published:>10} {ours:>10} {ratio:>8} {wanted:>8}   {peak}{note}"


def _data(folder):
    """A zip with train.csv, test.csv and sample_submission.csv, and in words where it is from."""
    named = os.environ.get("DIGIT_RECOGNIZER_ZIP")
    for path in [Path(named)] if named else [ROOT / "data" / "raw" / "digit-recognizer.zip"]:
        if path.is_file():
            return path.resolve(), "the competition's"
    import numpy as np

    print("no digit-recognizer.zip where DIGIT_RECOGNIZER_ZIP says, nor in data/raw: random images instead", flush=True)
    generator = np.random.default_rng(0)
    pixels = [f"pixel{i}" for i in range(784)]
    path = folder / "random.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, rows in (("train", ROWS), ("test", ROWS * 2 // 3)):
            # As many zeros as in the competition's images: 81%.
            values = generator.integers(0, 256, (rows, 784)) * (generator.random((rows, 784)) < 0.19)
            head = pixels
            if name == "train":
                values, head = np.column_stack([generator.integers(0, 10, rows), values]), ["label", *pixels]
            lines = [",".join(map(str, row)) for row in values.tolist()]
            archive.writestr(f"{name}.csv", "\n".join([",".join(head), *lines, ""]))
        lines = [f"{i},0" for i in range(1, ROWS * 2 // 3 + 1)]
        archive.writestr("sample_submission.csv", "\n".join(["ImageId,Label", *lines, ""]))
    return path, "random images of the competition's size"


def _machine(device):
    """The machine in words."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0] if lines else name
    words = f"{os.cpu_count()} cores, {name}, PyTorch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {words}" if device == "cuda" else words


if __name__ == "__main__":
    main()

"""A staged pipeline for Kaggle's Digit Recognizer: from its CSVs to a checked submission."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout: all paths of the pipeline's own files derive from it

# For reproducible results on CUDA (train.deterministic). PyTorch reads it once, at a process's first matrix product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

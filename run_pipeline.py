#!/usr/bin/env python3
"""The command line of the Digit Recognizer pipeline: `python run_pipeline.py --stage all`."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())

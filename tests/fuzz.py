"""A coverage-guided fuzzer for the readers: `pip install -r requirements/fuzz.txt && python -m tests.fuzz csv 60`.

The arguments are the reader (csv, idx, recipe) and the seconds. The fuzzer stops with an error at the first input that
is read incorrectly, or refused other than in one line. Such an input becomes a case in tests/test_fuzzed.py.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline.dataset", "pipeline.recipes.config"]):
    from tests import readers


def main():
    reader, seconds = sys.argv[1:3]
    check = readers.CHECKS[reader]
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(readers.SEEDS[reader]):
        (corpus / str(number)).write_bytes(seed)
    arguments = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], str(corpus), *arguments], lambda content: check(content, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

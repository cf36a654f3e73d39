"""A coverage-guided fuzzer over the readers: `pip install -r requirements/fuzz.txt && python -m tests.fuzz csv 60`.

The second word is the reader (csv, idx, recipe), the third the seconds. It ends with an error at the first input that
is misread, or refused otherwise than in one line; what it finds becomes a case of tests/test_fuzzed.py.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline.digits", "pipeline.sources", "pipeline.recipe"]):
    from pipeline import digits, recipe, sources

from tests import readers


def main():
    reader, seconds = sys.argv[1:3]
    check = readers.CHECKS[reader]
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(readers.SEEDS[reader]):
        (corpus / str(number)).write_bytes(seed)
    words = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup(words, lambda content: check(content, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    assert digits and recipe and sources
    main()

"""The fuzzer's checks (tests/readers.py) on its seeds, on inputs that it found, and on inputs by hypothesis."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import readers

FOUND = {"csv": (), "idx": (), "recipe": ()}
ANY_TIME = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.mark.parametrize("reader", readers.CHECKS)
def test_seeds_and_inputs_that_the_fuzzer_found(tmp_path, reader):
    for content in (*readers.SEEDS[reader], *FOUND[reader]):
        readers.CHECKS[reader](content, tmp_path)


@pytest.mark.parametrize("reader", readers.CHECKS)
@settings(max_examples=150, **ANY_TIME)
@given(data=st.data())
def test_spliced_seeds(tmp_path, reader, data):
    """Parts of the seeds and random bytes: closer to valid inputs than random bytes alone."""
    parts = st.one_of(st.sampled_from(readers.SEEDS[reader]), st.binary(max_size=20))
    first, second = data.draw(parts), data.draw(parts)
    end, start = data.draw(st.integers(0, len(first))), data.draw(st.integers(0, len(second)))
    readers.CHECKS[reader](first[:end] + data.draw(st.binary(max_size=8)) + second[start:], tmp_path)


@settings(max_examples=300, **ANY_TIME)
@given(text=st.text(st.sampled_from("0123456789,\r\n -+.eE\"'\t\0;"), max_size=60))
@example("5,0,255\n\n\n1,2,3")
@example("5,0,255\r\r\n")
@example("5,0,255\n,,\n")
def test_texts_that_resemble_tables(tmp_path, text):
    readers.check_csv(b"\0" + text.encode(), tmp_path)

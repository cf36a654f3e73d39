"""The fuzzer's seeds and finds, and inputs by hypothesis, through the checks that it runs (see tests/fuzz.py)."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import readers

FINDS = {"csv": (), "idx": (), "recipe": (b"#\n\n[estimate]\nseeds = 3\n",)}


@pytest.mark.parametrize("reader", readers.CHECKS)
def test_seeds_and_finds(tmp_path, reader):
    for content in (*readers.SEEDS[reader], *FINDS[reader]):
        readers.CHECKS[reader](content, tmp_path)


@pytest.mark.parametrize("reader", readers.CHECKS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spliced_seeds(tmp_path, reader, data):
    """Parts of the seeds and random bytes, put together: nearer to the valid than bytes alone."""
    parts = st.one_of(st.sampled_from(readers.SEEDS[reader]), st.binary(max_size=20))
    first, second = data.draw(parts), data.draw(parts)
    one, two = data.draw(st.integers(0, len(first))), data.draw(st.integers(0, len(second)))
    readers.CHECKS[reader](first[:one] + data.draw(st.binary(max_size=8)) + second[two:], tmp_path)


TEXTS = st.text(st.sampled_from("0123456789,\r\n -+.eE\"'\t\0;"), max_size=60)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
@example("5,0,255\n\n\n1,2,3")
@example("5,0,255\r\r\n")
@example("5,0,255\n,,\n")
def test_texts_like_tables(tmp_path, text):
    readers.check_csv(b"\0" + text.encode(), tmp_path)

"""Names of samples are read back by any tar reader."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.tars import image, scan, tar
from worker.ingest.sample_names import safe_key


@examples(200)
@given(st.text(max_size=300))
def test_any_name_becomes_one_that_is_read_back(name: str) -> None:
    key = safe_key(name)
    found = scan(tar([(f"{key}.cls", b"a"), (f"{key}.jpg", image())], 1))
    assert len(found.rows) == 1, (key, found.problems, found.passed_over)

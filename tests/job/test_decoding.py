"""How decoding is shared by processes."""

from worker.job.decoding import processes_for


def test_processes_share_no_lane() -> None:
    assert processes_for(16, 32) == 8
    assert processes_for(16, 4) == 4
    assert processes_for(1, 32) == 1
    assert processes_for(2, 32) == 1
    assert processes_for(3, 32) == 2
    assert processes_for(24, 32) == 8  # 12 would share lanes
    assert processes_for(8, 7) == 4  # 7 lanes have no better divisor than 1

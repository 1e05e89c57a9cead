"""Many lines in one chart."""

import re

from worker.plots import Chart, Line, draw


def test_many_groups_can_be_told_apart() -> None:
    lines = [Line(name=f"_block{n}", x=[0, 1], y=[n, n + 1], color=n) for n in range(40)]
    marks = [(n / 100, f"block {n} released") for n in range(40)]
    svg = draw(Chart(title="rates", x_label="step", lines=lines, marks=marks))
    names = re.findall(r">\u200b?(_block\d+)<", svg)
    assert 8 <= len(names) <= 12
    assert len(set(re.findall(r"stroke: (#[0-9a-f]{6})", svg))) >= 40
    assert svg.count("released") <= 7

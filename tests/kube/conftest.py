"""One control plane for all tests of this folder."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.kube.cluster import NAMESPACE, control, kubectl, set_up, tear_down


@pytest.fixture(scope="session")
def plane() -> Iterator[None]:
    """A control plane with two nodes, the namespace `training` and a store."""
    set_up()
    yield
    tear_down()


@pytest.fixture
def cluster(plane: None) -> Iterator[None]:
    """That control plane without any job of another test."""
    yield
    with contextlib.suppress(AssertionError):
        for kind in ("trainjob", "jobset", "job"):
            kubectl("-n", NAMESPACE, "delete", kind, "--all", "--wait=true", check=False)


@pytest.fixture
def power() -> Iterator[list[object]]:
    """Nodes that have lost their power, which they get back."""
    nodes: list[object] = []
    yield nodes
    for node in nodes:
        for state in ("dead", "removed"):
            control(state, node, on=False)

"""What a preflight says about the network."""

import pytest

from worker.check import place


@pytest.mark.parametrize(
    ("variable", "interface", "address", "text"),
    [
        ("ib0", None, "10.0.0.1", ", GLOO_SOCKET_IFNAME is ib0"),
        (None, "eth0", "10.0.0.1", ", via interface eth0"),
        (None, None, "10.0.0.1", ", but there is no route to it"),
        (None, "eth0", "127.0.1.1", ", which is this node"),
    ],
)
def test_the_interface_is_named(
    variable: str | None,
    interface: str | None,
    address: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if variable:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", variable)
    monkeypatch.setattr(place, "interface_to", lambda address: interface)
    assert place._by_interface(address) == text

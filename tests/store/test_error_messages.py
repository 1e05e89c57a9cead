"""Errors of stores and of proxies in front of them."""

from collections.abc import Callable

import pytest

from tests.support.proxy import Proxy
from tests.support.stores import keys
from worker.errors import ConfigurationError, InfrastructureError
from worker.store import Store


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_redirect_is_named_and_not_followed(status: str, faulty: tuple[Proxy, Store]) -> None:
    server, store = faulty
    server.plan = lambda request: status
    for ask in (lambda: store.get("object"), lambda: list(store.list())):
        with pytest.raises(ConfigurationError) as raised:
            ask()
        text = str(raised.value)
        assert f"{server.endpoint} redirects to https://store.invalid; set AWS_ENDPOINT_URL" in text
        assert "secret" not in text


@pytest.mark.parametrize("status", ["507", "522", "500"])
def test_every_fault_of_a_server_may_pass(
    status: str, faulty: tuple[Proxy, Store], impatient: Callable[[], None]
) -> None:
    server, store = faulty
    server.plan = lambda request: status if request.number == 1 else None
    assert store.get("object") == b"0123456789"
    impatient()
    server.plan = lambda request: status
    with pytest.raises(InfrastructureError, match=f"the store responds with {status}"):
        store.get("object")


def test_the_cause_is_the_response_and_not_the_deadline_that_ran_out(
    faulty: tuple[Proxy, Store], impatient: Callable[[], None]
) -> None:
    server, store = faulty
    assert store.get("object")  # makes the client, whose reads may then take longer
    impatient()
    server.plan = lambda request: "507" if request.number == 2 else "drip head"
    with pytest.raises(InfrastructureError, match="the store responds with 507"):
        store.get("object")


def test_answers_of_proxies_are_told_from_those_of_s3(
    faulty: tuple[Proxy, Store], impatient: Callable[[], None]
) -> None:
    server, store = faulty
    server.plan = lambda request: "chunked"
    assert store.get("object") == b"0123456789"
    assert store.get("object", 2, 5) == b"234"
    server.plan = lambda request: "whole"  # the range is ignored
    assert store.get("object", 2, 5) == b"234"
    impatient()
    for fault in ("html", "blank"):
        server.plan = lambda request, fault=fault: fault  # type: ignore[misc]
        for ask in (lambda: list(store.list()), lambda: store.put("new", b"x")):
            with pytest.raises(InfrastructureError, match="like an S3 server"):
                ask()
        with pytest.raises(InfrastructureError, match="like an S3 server"):
            store.put_if_absent("newer", b"x")
    server.plan = lambda request: None
    assert keys(store) == ["object"]


@pytest.mark.parametrize("status", ["403", "404"])
def test_a_page_of_a_web_server_is_no_missing_object(
    status: str, faulty: tuple[Proxy, Store]
) -> None:
    server, store = faulty
    server.plan = lambda request: f"{status} html"
    asked = (
        lambda: store.get("object"),
        lambda: list(store.list()),
        lambda: store.put("new", b"x"),
        lambda: store.put_if_absent("newer", b"x"),
        lambda: store.delete("object"),
    )
    for ask in asked:
        with pytest.raises(ConfigurationError, match=f"responds with {status}, but not like an S3"):
            ask()
    server.plan = lambda request: None
    assert keys(store) == ["object"]

"""Client of a Prometheus Pushgateway, which holds one group of metrics per run."""

import base64
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from prometheus_client import (
    CollectorRegistry,
    delete_from_gateway,
    push_to_gateway,
    pushadd_to_gateway,
)
from prometheus_client.exposition import basic_auth_handler, default_handler

from worker.environment import Settings
from worker.errors import ConfigurationError
from worker.metrics.run_labels import Owner

TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Gateway:
    """A Pushgateway."""

    address: str
    """Its address, without credentials."""
    user: str = ""
    """The user name to push with; empty for none."""
    password: str = ""
    """The password."""

    @staticmethod
    def from_environment() -> "Gateway | None":
        """Return the gateway set in WORKER_PUSHGATEWAY, or None if it is unset.

        Raises `ConfigurationError` if the address is malformed.
        """
        text = Settings.from_env().pushgateway
        if not text:
            return None
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
        except ValueError:  # malformed IPv6 addresses
            parts = urlsplit("")
        # At the last `@`, as a password may hold one, too.
        login, _, host = parts.netloc.rpartition("@")
        if parts.scheme not in ("http", "https") or not host or parts.query:
            raise ConfigurationError(
                "WORKER_PUSHGATEWAY: must be http[s]://[USER:PASSWORD@]HOST[:PORT][/PATH]"
            )
        user, _, password = login.partition(":")
        address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        return Gateway(address, unquote(user), unquote(password))

    def put(self, registry: CollectorRegistry, owner: Owner, **more: str) -> None:
        """Overwrite all metrics of a run, or of its group with the extra labels `more`.

        Raises `OSError` if the gateway does not respond within `TIMEOUT_SECONDS` or rejects them.
        """
        self._send(push_to_gateway, owner, more, registry=registry)

    def add(self, registry: CollectorRegistry, owner: Owner) -> None:
        """Add these metrics to the group of a run, replacing those of the same name."""
        self._send(pushadd_to_gateway, owner, {}, registry=registry)

    def delete(self, owner: Owner, **more: str) -> None:
        """Delete all metrics of a run, or of its group with the extra labels `more`."""
        self._send(delete_from_gateway, owner, more)

    def _send(
        self, send: Callable[..., None], owner: Owner, more: Mapping[str, str], **what: Any
    ) -> None:
        # prometheus_client passes these by name, so the names cannot be changed. The result is a
        # function that sends the request.
        def handle(url: str, method: str, timeout: float, headers: Any, data: bytes) -> Any:
            request = (url, method, timeout, headers, data)
            if not self.user:
                return default_handler(*request)
            return basic_auth_handler(*request, self.user, self.password)

        send(
            self.address,
            job=owner.job,
            grouping_key={"run": owner.run, **more},
            timeout=TIMEOUT_SECONDS,
            handler=handle,
            **what,
        )

    def ask(self) -> None:
        """Check that the gateway is ready; raise `OSError` if it is not."""
        # The Pushgateway's readiness endpoint
        # (https://github.com/prometheus/pushgateway#management-api).
        request = urllib.request.Request(f"{self.address}/-/ready")  # noqa: S310
        if self.user:
            login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {login}")
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()  # noqa: S310

"""A Prometheus Pushgateway: one group per run, replaced as a whole by every push."""

import base64
import os
import urllib.request
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry, push_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler

from worker.errors import ConfigurationError

TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Gateway:
    """Where to push to, and as whom; the address is free of secrets."""

    address: str
    user: str = ""
    password: str = ""

    @staticmethod
    def from_environment() -> "Gateway | None":
        """That of WORKER_PUSHGATEWAY; raises `ConfigurationError` for what is no such address."""
        text = os.environ.get("WORKER_PUSHGATEWAY")
        if not text:
            return None
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
        except ValueError:  # of IPv6 addresses
            parts = urlsplit("")
        login, _, host = parts.netloc.rpartition("@")
        if parts.scheme not in ("http", "https") or not host or parts.query:
            raise ConfigurationError(
                "WORKER_PUSHGATEWAY: must be http[s]://[USER:PASSWORD@]HOST[:PORT][/PATH]"
            )
        user, _, password = login.partition(":")
        address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        return Gateway(address, unquote(user), unquote(password))

    def put(self, registry: CollectorRegistry, job: str, run: str, **more: str) -> None:
        """Make these metrics all that the gateway holds of the run, or of a part of it.

        `more` are the labels of such a part.

        Raises `OSError` where it does not answer within seconds, or refuses them.
        """

        def handle(url, method, timeout, headers, data):  # type: ignore[no-untyped-def]
            if not self.user:
                return default_handler(url, method, timeout, headers, data)
            return basic_auth_handler(url, method, timeout, headers, data, self.user, self.password)

        push_to_gateway(
            self.address,
            job=job,
            registry=registry,
            grouping_key={"run": run, **more},
            timeout=TIMEOUT_SECONDS,
            handler=handle,
        )

    def ask(self) -> None:
        """Raise what keeps the gateway from answering that it is ready."""
        request = urllib.request.Request(f"{self.address}/-/ready")  # noqa: S310
        if self.user:
            login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {login}")
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()  # noqa: S310

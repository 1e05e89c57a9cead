"""Checks of a process's AWS variables, made before anything is sent."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from worker.errors import ConfigurationError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
STS_ENDPOINT = "AWS_ENDPOINT_URL_STS"
IDENTITY_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE"
_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_CERTIFICATES = ("AWS_CA_BUNDLE",)
_ROLE = ("AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_IDENTITIES = ("AWS_SHARED_CREDENTIALS_FILE", IDENTITY_FILE)
"""Variables that name files, which are read if the pair of keys is not set."""
_REGION = re.compile(r"[A-Za-z0-9-]{1,63}")


_ECHO = " (a file or Secret made with `echo` ends with a line break: use `printf %s`)"
_PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def check_settings(env: Mapping[str, str]) -> None:
    """Raise a `ConfigurationError` that names the first variable with an unusable value."""
    for name in (
        *_PAIR,
        "AWS_SESSION_TOKEN",
        *_REGIONS,
        *ENDPOINTS,
        STS_ENDPOINT,
        *_CERTIFICATES,
        *_IDENTITIES,
        *_ROLE,
        "AWS_PROFILE",
        *_PROXIES,
    ):
        _require_plain(name, env.get(name, ""))
    for name in _REGIONS:
        if env.get(name) and not _REGION.fullmatch(env[name]):
            raise ConfigurationError(f"{name}: {env[name][:60]!r} is not a region name")
    if env.get(_PAIR[0]) and not env.get(_PAIR[1]):
        raise ConfigurationError(f"{_PAIR[1]}: not set, though {_PAIR[0]} is; set both")
    # Files that will not be used may be missing: a CA bundle without TLS, a credentials file if the
    # keys are in the environment.
    tls = not endpoint_in(env).startswith("http://")
    used = [*(_CERTIFICATES if tls else ()), *(() if env.get(_PAIR[0]) else _IDENTITIES)]
    for name in used:
        if env.get(name) and not Path(env[name]).expanduser().exists():
            raise ConfigurationError(f"{name}: {env[name]} does not exist")
    for name in (*ENDPOINTS, STS_ENDPOINT):
        if env.get(name):
            _check_endpoint(name, env[name])


def endpoint_in(env: Mapping[str, str]) -> str:
    """Return the address of the endpoint without a login; empty if no endpoint is set."""
    url = next((env[name] for name in ENDPOINTS if env.get(name)), "")
    return address_in(url) if url else ""


def address_in(url: str) -> str:
    """Return the scheme, host and port of a URL."""
    scheme, _, rest = url.partition("://")
    # The login is removed first, as a password may contain a slash.
    return f"{scheme}://{rest.rpartition('@')[2].partition('/')[0]}"


def proxy_in(env: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that sets the endpoint's proxy, and its value without a login."""
    scheme = "http" if endpoint_in(env).startswith("http://") else "https"
    for name in _PROXIES:
        if name.lower() in (f"{scheme}_proxy", "all_proxy") and env.get(name):
            return name, env[name].rpartition("@")[2]
    return f"{scheme.upper()}_PROXY", ""


def _require_plain(name: str, value: str) -> None:
    """Raise `ConfigurationError` for a value that no HTTP header can hold, without showing it."""
    # Header values are printable ASCII without spaces at either end (RFC 9110, section 5.5).
    if value == value.strip() and value.isascii() and value.isprintable():
        return
    what = "contains a character that is not allowed"
    if value.strip().isprintable() and value.isascii():
        where = "ends" if value == value.lstrip() else "begins"
        what = f"{where} with a {'line break' if value.strip(' ') != value.strip() else 'space'}"
    raise ConfigurationError(
        f"{name}: {what}; set the variable without it{_ECHO if 'line break' in what else ''}"
    )


def _check_endpoint(name: str, url: str) -> None:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        where = url.rpartition("@")[2][:200]
        how = "has an unsupported scheme" if separator else "has no scheme"
        host = where.partition("://")[2] or re.sub("^https?:/*", "", where)
        raise ConfigurationError(f"{name}: {where!r} {how}; give http://{host} or https://{host}")
    host = rest.partition("/")[0].rpartition("@")[2]
    if host.count(":") > 1 and not host.startswith("[") and "@" not in url:
        address, _, port = host.rpartition(":")
        plain = f"[{address}]:{port}" if host.count("::") == 1 and port.isdecimal() else f"[{host}]"
        raise ConfigurationError(
            f"{name}: put an IPv6 address in brackets, as in {scheme}://{plain}"
        )
    try:
        valid = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"[\s?#]", rest):
        shown = "" if "@" in url else f"{host!r} "  # a password may hold a slash
        raise ConfigurationError(f"{name}: {shown}is not HOST or HOST:PORT")

"""Checks of a process's AWS variables, made before anything is sent."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from worker.errors import ConfigurationError, first_line
from worker.store.aws_profile import (
    PROFILES,
    configured_endpoint,
    configured_region,
    require_profile,
)

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
IGNORE_ENDPOINTS = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"
_IN_FILE = "endpoint_url in the AWS config file"
STS_ENDPOINT = "AWS_ENDPOINT_URL_STS"
IDENTITY_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE"
_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_CERTIFICATES = ("AWS_CA_BUNDLE",)
ROLE = "AWS_ROLE_ARN"
_ROLE = (ROLE, "AWS_ROLE_SESSION_NAME", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_IDENTITIES = (
    "AWS_SHARED_CREDENTIALS_FILE",
    IDENTITY_FILE,
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)
"""Variables that name files, which are read if the pair of keys is not set."""
_SCHEME = re.compile(r"[A-Za-z0-9+.-]+://(?=.*@)")
_REGION = re.compile(r"[A-Za-z0-9-]{1,63}")
_VALID = re.compile(r"must be one of|\bValid\b|Can only")


_ECHO = " (a file or Secret made with `echo` ends with a line break: use `printf %s`)"
_PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY")  # botocore reads no others


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
    if any(name in env for name in PROFILES):
        require_profile()
    setting, endpoint = endpoint_setting(env)
    _check_files(env, tls=not endpoint.startswith("http://"))
    for name, url in ((STS_ENDPOINT, env.get(STS_ENDPOINT, "")), (setting, endpoint)):
        if url:
            _check_endpoint(name, url)
    exceptions = {"no": env.get("no_proxy") or env.get("NO_PROXY", "")}
    host = urlsplit(address_in(endpoint)).hostname or _host_of_aws(env)
    if not proxy_bypass_environment(host, exceptions):
        _check_proxy(*proxy_in(env))


def _host_of_aws(env: Mapping[str, str]) -> str:
    """Return the host of AWS's own S3, in China's partition or the other one."""
    named = next((env[name] for name in _REGIONS if env.get(name)), "")
    region = named or configured_region() or "us-east-1"
    return f"s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _check_files(env: Mapping[str, str], *, tls: bool) -> None:
    """Raise `ConfigurationError` for a file that is needed but does not exist."""
    # Files that will not be used may be missing: a CA bundle without TLS, a credentials file if the
    # keys are in the environment.
    used = [*(_CERTIFICATES if tls else ()), *(() if env.get(_PAIR[0]) else _IDENTITIES)]
    for name in used:
        path = Path(env.get(name, "")).expanduser()
        if env.get(name) and (path.is_dir() or not path.exists()):  # /dev/null is no mistake
            problem = "is a folder; give the file" if path.is_dir() else "does not exist"
            raise ConfigurationError(f"{name}: {env[name]} {problem}")


def endpoint_setting(env: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of the setting that leads to the store, and its value, empty if not set."""
    if env.get(IGNORE_ENDPOINTS, "").lower() == "true":
        return IGNORE_ENDPOINTS, ""
    for name in ENDPOINTS:
        if env.get(name):
            return name, env[name]
    url = configured_endpoint()
    return (_IN_FILE if url else ENDPOINTS[-1]), url


def refused_setting(error: Exception, env: Mapping[str, str]) -> ConfigurationError:
    """Return the error for a setting that botocore refuses, with the name of its variable."""
    text = first_line(error)
    for name in ENDPOINTS:  # the endpoint may contain a password in any form
        text = text.replace(env.get(name) or name, name)
    # botocore quotes the value, but does not name the variable; a list of valid values may follow.
    quoted = _VALID.split(text)[0]
    named = [
        name
        for name in sorted(env)
        if name.startswith("AWS_")
        and any(
            part and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", quoted)
            for part in (env[name], address_in(env[name]).partition("://")[2])
        )
    ]
    subject = " or ".join(named) or "AWS settings"
    return ConfigurationError(f"{subject}: refused by the S3 client: {text}")


def address_in(url: str) -> str:
    """Return the scheme, host and port of a URL."""
    scheme, _, rest = url.partition("://")
    # The login is removed first, as a password may contain a slash.
    return f"{scheme}://{rest.rpartition('@')[2].partition('/')[0]}"


def proxy_in(env: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that sets the endpoint's proxy, and its value without a login."""
    scheme = "http" if endpoint_setting(env)[1].startswith("http://") else "https"
    for name in _PROXIES:
        if name.lower() == f"{scheme}_proxy" and env.get(name):
            begin = _SCHEME.match(env[name])  # only at the start, as a password may hold `://`
            return name, f"{begin[0] if begin else ''}{env[name].rpartition('@')[2]}"
    return f"{scheme.upper()}_PROXY", ""


def _check_proxy(name: str, url: str) -> None:
    """Raise `ConfigurationError` unless a proxy's value is `http://HOST:PORT` or `HOST:PORT`."""
    scheme, separator, host = url.rpartition("://")
    if separator and scheme.lower() not in ("http", "https"):
        raise ConfigurationError(
            f"{name}: {url[:200]!r} is not an HTTP proxy; give one as http://HOST:PORT, or add the "
            "endpoint's host to NO_PROXY"
        )
    if re.search(r"[\s?#]", host):
        raise ConfigurationError(f"{name}: {url[:200]!r} is not http://HOST:PORT")


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
    if url[0] in "\"'":
        raise ConfigurationError(
            f"{name}: begins with a quotation mark; remove it and the one at the end "
            "(`docker --env-file` takes them as part of the value)"
        )
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
    shown = "" if "@" in url else f"{rest[:200]!r} "  # a password may hold a slash
    if not valid or re.search(r"[\s?#]", rest):
        raise ConfigurationError(f"{name}: {shown}is not HOST or HOST:PORT")
    if "_" in (urlsplit(url).hostname or ""):
        raise ConfigurationError(
            f"{name}: {shown}has an underscore, which boto3 refuses in a host name; use an alias "
            "or the IP address"
        )
    path = urlsplit(url).path.lstrip("/")
    # Some stores are at a path, such as /storage/v1/s3; a single word is a bucket, as in the
    # address that Cloudflare's pages give, unless a slash at its end says that it is not.
    if path not in ("", "s3") and "/" not in path:
        raise ConfigurationError(
            f"{name}: ends with /{path}, which looks like a bucket; remove it, and give the bucket "
            f"in addresses: s3://{path}/… (or end the path of a gateway with a slash: /{path}/)"
        )

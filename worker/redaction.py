"""Takes secrets out of text that leaves the process: the last line of defence, not the first."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

_HIDDEN = "[hidden]"
_SHORTEST = 6
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASS|PWD|CREDENTIAL|PRIVATE|KEY|AUTH(?!OR)|SIGNATURE|COOKIE|DSN|WEBHOOK|"
    r"CONN(ECTION)?_STR|(^|_)PAT($|_)",
    re.IGNORECASE,
)
_PLACE_NAME = re.compile(
    r"^(?!.*WEBHOOK).*_(FILE|PATH|DIR|URI|URL|ARN|HOST|ADDR|PORT|NAME)$", re.IGNORECASE
)
_LOGIN = re.compile(r"://(?:[^/@:\s\"']*:[^\s\"']*|[^/@\s\"']*)@")
_PASSWORD = re.compile(r"://[^/@:\s]*:(.*)@")
_SIGNED = re.compile(
    r"(?:[?#]|%3F|%23)[^\s\"'<>]*?"
    r"(?:signature|credential|token|secret|passw|sig|auth|key)[\w-]*(?:=|%3D)[^\s\"'<>]*",
    re.IGNORECASE,
)


def is_signed(address: str) -> bool:
    """Whether an address looks like a presigned URL, which is a secret as a whole."""
    return bool(_SIGNED.search(address))


def redacted(text: str) -> str:
    """The text without the values of secret environment variables, logins and signed queries."""
    text = _SIGNED.sub("?[hidden]", _LOGIN.sub("://", text))
    for secret in _secrets():
        for form in _forms(secret):
            text = text.replace(form, _HIDDEN)
    return text


def redacted_data(value: Any) -> Any:
    """The same for all texts in JSON data, but for the names of its fields."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_data(item) for key, item in value.items()}
    return [redacted_data(item) for item in value] if isinstance(value, list | tuple) else value


def _forms(secret: str) -> set[str]:
    """How a secret may stand in a text."""
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], *quoted}


def _secrets() -> list[str]:
    """The values of variables named like a secret that are no place of one; passwords in URLs."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and not _PLACE_NAME.search(name):
            found.add(value)
        login = _PASSWORD.search(value)
        if login:
            found |= {login[1], unquote(login[1])}
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)

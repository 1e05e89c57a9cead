"""Takes secrets out of text that leaves the process: the last line of defence, not the first."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_HIDDEN = "[hidden]"
_SHORTEST = 6
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH(?!OR)|SIGNATURE",
    re.IGNORECASE,
)
_PLACE_NAME = re.compile(r"_(FILE|PATH|DIR|URI|URL|ARN|HOST|ADDR|PORT|NAME)$", re.IGNORECASE)
_LOGIN = re.compile(r"://[^/@\s\"']*@")
_SIGNED = re.compile(
    r"\?[^\s\"'<>]*(?:signature|credential|token|secret|password|key|sig|auth)[\w-]*=[^\s\"'<>]*",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text without the values of secret environment variables, logins and signed queries."""
    text = _SIGNED.sub("?[hidden]", _LOGIN.sub("://", text))
    for secret in _secrets():
        for form in {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe="")}:
            text = text.replace(form, _HIDDEN)
    return text


def redacted_data(value: Any) -> Any:
    """The same for all texts in JSON data, but for the names of its fields."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_data(item) for key, item in value.items()}
    return [redacted_data(item) for item in value] if isinstance(value, list | tuple) else value


def _secrets() -> list[str]:
    """The values of variables that are named like a secret and are no mere place of one."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name) and not _PLACE_NAME.search(name)
    }
    return sorted(values, key=len, reverse=True)

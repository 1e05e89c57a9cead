"""Takes secrets out of text that leaves the process: the last line of defence, not the first."""

import json
import os
import re
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


def _secrets() -> list[str]:
    """The values of variables that are named like a secret and are no mere place of one."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name) and not _PLACE_NAME.search(name)
    }
    return sorted(values, key=len, reverse=True)

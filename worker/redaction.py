"""Redaction of secrets in text that leaves the process: a last line of defense."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

_HIDDEN = "[hidden]"
_SHORTEST = 6  # characters; replacing shorter secrets would garble ordinary words
_SHORTEST_ID = 16  # characters, the minimum for an AWS access key ID
# Short words such as PASS count only as whole parts between underscores.
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|WEBHOOK|CONN(ECTION)?_STR|"
    r"(API|ACCESS|PRIVATE|ACCOUNT|ENCRYPTION|SIGNING|LICENSE|SSH|AUTH)_?KEY|"
    r"(^|_)(PASS|PWD|AUTHORIZATION|DSN)($|_)|[a-z](PWD|PASS)$",
    re.IGNORECASE,
)
# What these hold may be a secret, or a word that must stay readable (SORT_KEY=filename). Neither
# MONKEY nor KEYRING_HOME matches.
_DOUBTFUL_NAME = re.compile(r"SIGNATURE|COOKIE|(^|_)(KEY|AUTH|PRIVATE|PAT)($|_)", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z]+([-_. ][A-Za-z]+)*")
# Variables with such names hold the location of a secret. A webhook's URL, however, is itself a
# secret.
_PLACE_NAME = re.compile(
    r"^(?!.*WEBHOOK).*_(FILE|PATH|DIR|DIRECTORY|URI|URL|ARN|HOST|ADDR|PORT|NAME)$",
    re.IGNORECASE,
)
# These do, too, if what they hold looks like a path: SSH_AUTH_SOCK. Some put the secret there.
_PATH_NAME = re.compile(r"_SOCK$|^GOOGLE_APPLICATION_CREDENTIALS$", re.IGNORECASE)
_LIKE_A_PATH = re.compile(r"[^\s{]*/\S*|[^{]*\.json")
# Such names hold a number, MAX_NEW_TOKENS and TOKEN_LIMIT, or a word, PASSWORD_STORE. What ends
# like a secret (STORE_PASSWORD) is one.
_NUMBER_NAME = re.compile(r"^(MAX|MIN|NUM)_.*TOKENS$|_(COUNT|LIMIT)$", re.IGNORECASE)
_WORD_NAME = re.compile(r"_STORE$", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/@:\s]*:(.*)@")
_ADDRESS = re.compile(r"[^\s\"']+")  # a password may hold < and >
_TOKEN = re.compile(r"[^\s\"'<>]+")
_FOLDERS = ("PWD", "OLDPWD")
_MAX_PATH = 4096  # Linux's PATH_MAX, including the final NUL
_QUERY = re.compile(r"[?#]|%3F|%23", re.IGNORECASE)
_EQUALS = re.compile(r"=|%3D", re.IGNORECASE)
_WORD = re.compile(r"[\w-]*")
_TELLS_SECRET = re.compile(r"signature|credential|token|secret|passw|sig|auth|key", re.IGNORECASE)


def is_signed(address: str) -> bool:
    """Return whether an address looks like a presigned URL, which is itself a secret."""
    return any(_signed_from(token) is not None for token in _TOKEN.findall(address))


def redacted(text: str) -> str:
    """Return the text without secret environment values, logins or signed queries."""
    # Replace secrets first, since the other substitutions may cut one in two.
    for secret in _secrets():
        for form in _forms(secret):
            text = text.replace(form, _HIDDEN)
    text = _ADDRESS.sub(lambda match: _without_login(match[0]), text)
    return _TOKEN.sub(lambda match: _without_query(match[0]), text)


def _without_query(token: str) -> str:
    """Remove the query of a presigned URL."""
    at = _signed_from(token)
    return token if at is None else f"{token[:at]}?{_HIDDEN}"


def _without_login(token: str) -> str:
    """Remove `USER:PASSWORD@` and `USER@`, in linear time; a password may hold any character."""
    last = token.rfind("@")
    if last < 0 or "://" not in token:
        return token
    kept: list[str] = []
    at = 0
    # After each `://`, the first of `/`, `:` and `@` decides:
    # 1. `/`: this is a host without a login; continue with the next `://`.
    # 2. `:`: a password begins, which may itself hold `@` and `://`, so everything up to the last
    #    `@` goes. This may remove part of a path, but never leaves part of a password.
    # 3. `@`: only a user name precedes the host.
    # No part of the token is scanned twice: there is no `:` before `end`, so the next `://` cannot
    # begin before it.
    while True:
        start = token.find("://", at)
        if start < 0 or start >= last:
            return "".join([*kept, token[at:]])
        start += len("://")
        kept.append(token[at:start])
        at = start
        end = next((i for i in range(start, last + 1) if token[i] in "/@:"), last)
        if token[end] == ":":
            at = last + 1
        elif token[end] == "@":
            at = end + 1


def _signed_from(token: str) -> int | None:
    """Return the index at which a presigned URL's query begins in a token, or None."""
    query = _QUERY.search(token)
    if not query or not _TELLS_SECRET.search(token, query.end()):
        return None
    # A field's name is the last word before its `=`. Matching the reversed text anchors the match
    # at the end; a search for `[\w-]*$` would take quadratic time.
    *fields, _ = _EQUALS.split(token[query.end() :])
    names = (_WORD.match(field[::-1]) for field in fields)
    signed = any(name and _TELLS_SECRET.search(name[0][::-1]) for name in names)
    return query.start() if signed else None


def redacted_data(value: Any) -> Any:
    """Redact all strings in JSON data, except for the names of its fields."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_data(item) for key, item in value.items()}
    return [redacted_data(item) for item in value] if isinstance(value, list | tuple) else value


def _is_secret(name: str, value: str) -> bool:
    """Return whether a variable holds a secret rather than the path to one, or a mere word."""
    if name in _FOLDERS or _PLACE_NAME.search(name):
        return False
    if _PATH_NAME.search(name) and _LIKE_A_PATH.fullmatch(value):
        return False
    if _NUMBER_NAME.search(name) and value.isdecimal():
        return False
    if _WORD_NAME.search(name) and _WORDS.fullmatch(value):
        return False
    doubtful = _DOUBTFUL_NAME.search(name) and not _WORDS.fullmatch(value)
    return bool(_SECRET_NAME.search(name) or doubtful)


def _is_path(value: str) -> bool:
    """Return whether a value is an existing path, such as that of a socket or of a folder here."""
    try:
        return bool(value) and len(value) < _MAX_PATH and Path(value).exists()
    except (OSError, ValueError):
        return False


def _forms(secret: str) -> set[str]:
    """Return the forms in which a secret may appear in a text."""
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], *quoted}


def _secrets() -> list[str]:
    """Return the passwords in URLs, and the values of secret variables that are not paths."""
    found = set()
    for name, value in os.environ.items():
        # A short access key ID may be a plain user name, which is not a secret.
        word = name.upper().endswith("ACCESS_KEY_ID") and len(value) < _SHORTEST_ID
        if _is_secret(name, value) and not _is_path(value) and not word:
            found.add(value)
        login = _PASSWORD.search(value)
        if login:
            found |= {login[1], unquote(login[1])}
    # Longest first, as replacing a secret that is part of another would leave the rest of that one.
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)

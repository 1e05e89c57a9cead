"""The profile in the AWS config file, which may set the endpoint."""

import os
from typing import Any

import botocore.exceptions as boto_errors
import botocore.session

from worker.errors import ConfigurationError, first_line

PROFILES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")  # in botocore's order


def require_profile() -> None:
    """Raise `ConfigurationError` if the profile in use does not exist, or its file is damaged."""
    _read_profile(botocore.session.Session())


def configured_region() -> str:
    """Return the region that the profile in use sets; empty if it sets none."""
    return str(_read_profile(botocore.session.Session()).get("region") or "")


def _read_profile(session: botocore.session.Session) -> dict[str, Any]:
    try:
        profile: dict[str, Any] = session.get_scoped_config()
    except boto_errors.ProfileNotFound:
        raise _unknown_profile() from None
    except boto_errors.BotoCoreError as error:
        raise ConfigurationError(first_line(error)) from None
    return profile


def configured_endpoint() -> str:
    """Return the endpoint that the profile in use sets for S3; empty if it sets none.

    Raises `ConfigurationError` for a profile that does not exist, or a file that is damaged.
    """
    session = botocore.session.Session()
    profile = _read_profile(session)
    services = session.full_config.get("services", {})
    name = profile.get("services", "")
    own = services.get(name, {}) if isinstance(name, str) else name
    own = own.get("s3", {}) if isinstance(own, dict) else own
    if not isinstance(own, dict):
        raise ConfigurationError(
            "the AWS config file: `services` must name a section [services NAME], in which `s3 =` "
            "is followed by indented settings"
        )
    return str(own.get("endpoint_url") or profile.get("endpoint_url") or "")


def profile_names() -> list[str]:
    """Return the names of all profiles in the AWS config and credentials files, sorted."""
    try:
        return sorted(botocore.session.Session().available_profiles)
    except boto_errors.BotoCoreError:
        return []


def _unknown_profile() -> ConfigurationError:
    name = next(name for name in PROFILES if name in os.environ)
    if not os.environ[name]:
        return ConfigurationError(f"{name}: is empty; unset it")
    return ConfigurationError(
        f"{name}: no profile {os.environ[name][:60]!r} in ~/.aws/config or ~/.aws/credentials; "
        "correct it, or unset the variable"
    )

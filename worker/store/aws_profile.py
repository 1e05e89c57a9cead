"""The profile in the AWS config file, which may set the endpoint."""

import os

import botocore.exceptions as boto_errors
import botocore.session

from worker.errors import ConfigurationError, first_line

PROFILES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")  # in botocore's order


def configured_endpoint() -> str:
    """Return the endpoint that the profile in use sets for S3; empty if it sets none.

    Raises `ConfigurationError` for a profile that does not exist, or a file that is damaged.
    """
    session = botocore.session.Session()
    try:
        profile = session.get_scoped_config()
        services = session.full_config.get("services", {})
    except boto_errors.ProfileNotFound:
        raise _unknown_profile() from None
    except boto_errors.BotoCoreError as error:
        raise ConfigurationError(first_line(error)) from None
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

"""How many examples a property test takes: all of them in `make test`, few in `make quick`."""

from typing import Any

from hypothesis import settings

settings.register_profile("ci", max_examples=10_000)
settings.register_profile("dev", max_examples=25)
settings.load_profile("ci")


def examples(count: int, **more: Any) -> settings:
    """Return hypothesis' settings for `count` examples, or fewer if the profile has fewer."""
    return settings(max_examples=min(count, settings().max_examples), deadline=None, **more)

"""How many examples a property test takes: all of them in `make test`, few in `make quick`."""

from typing import Any

from hypothesis import settings

FEW = 25
settings.register_profile("ci", deadline=None)
settings.register_profile("dev", deadline=None, max_examples=FEW)
settings.load_profile("ci")


def examples(count: int, **more: Any) -> settings:
    """Return hypothesis' settings for `count` examples, or a few in the profile `dev`."""
    few = settings().max_examples == FEW
    return settings(max_examples=min(count, FEW) if few else count, deadline=None, **more)

"""The number of bad samples that an error budget allows."""


def allowed(budget: float, samples: int) -> int:
    """Return the number of samples that may be bad: at least one, unless the budget is 0.

    That way, a single bad image among a few hundred is tolerated.
    """
    return max(1, int(budget * samples)) if budget else 0

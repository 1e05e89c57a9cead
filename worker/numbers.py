"""Arithmetic missing from Python's standard library."""


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient of two integers, rounded up."""
    return -(-numerator // denominator)

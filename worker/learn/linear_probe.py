"""A linear classifier fitted to features, as the head of a pretrained model."""

import torch
from torch import Tensor
from torch.nn import functional as F

_MAX_STEPS = 100
_PENALTY = 1.0  # on the squared weights, over the sum of the losses: scikit-learn's C of 1


def fit_head(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Fit softmax regression with an L2 penalty to features; the result is unique.

    The penalty keeps the weights finite if the classes can be separated, and leaves images that
    are right with a gradient.

    Args:
        features: Features, float [N, D].
        labels: Class numbers, int64 [N].
        weight: The weights that the result replaces, [classes, D], for their shape and dtype.
        bias: The bias that it replaces, [classes]; None for a head without one.

    Returns:
        The weight and the bias.
    """
    # Computed with one thread, as the last digits would otherwise depend on the number.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(features, labels, weight, bias)
    finally:
        torch.set_num_threads(threads)


def _fit(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    inputs = features.double()
    fitted = torch.zeros_like(weight, dtype=torch.float64, requires_grad=True)
    parameters = [fitted]
    shift: Tensor | None = None
    if bias is not None:
        shift = torch.zeros_like(bias, dtype=torch.float64, requires_grad=True)
        parameters.append(shift)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=_MAX_STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(F.linear(inputs, fitted, shift), labels, reduction="sum")
        loss = (losses + _PENALTY / 2 * fitted.square().sum()) / len(labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = fitted.detach().to(weight.dtype)
    return found, None if shift is None else shift.detach().to(weight.dtype)

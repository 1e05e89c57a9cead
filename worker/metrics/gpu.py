"""What the driver says of a GPU."""

import torch


def utilization(device: int) -> float | None:
    """Share of the last moments in which the GPU was busy; None where the driver does not say."""
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # every vendor's library raises its own
        return None

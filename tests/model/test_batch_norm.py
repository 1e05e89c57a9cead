"""Batch norm and batches of one image."""

import torch
from torch import nn

from worker.model.batch_norm import BatchStatistics


def test_one_image_at_a_time_gives_statistics_where_it_has_values_for_them(alone: None) -> None:
    first, frozen, last = (nn.BatchNorm2d(3) for _ in range(3))
    model = nn.Sequential(first, frozen, nn.AdaptiveAvgPool2d(1), last)
    frozen.eval()
    image = torch.rand(1, 3, 4, 4)
    with BatchStatistics(model).withheld(image, suffice=True):
        model(image)  # torch itself refuses one value per channel
    assert [int(norm.num_batches_tracked or 0) for norm in (first, frozen, last)] == [1, 0, 0]
    assert [norm.training for norm in (first, frozen, last)] == [True, False, True]
    with BatchStatistics(model).withheld(image, suffice=False):
        model(image)
    assert int(first.num_batches_tracked or 0) == 1
    assert first.training

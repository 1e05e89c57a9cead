"""A single rank trains the bare model."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.learners import ALONE
from worker.ranks.data_parallel import in_parallel, without_exchange


def test_a_single_rank_pays_for_no_buckets(alone: None) -> None:
    model = nn.Linear(2, 2)
    assert in_parallel(model, ALONE) is model
    with without_exchange(model):
        model(torch.zeros(1, 2)).sum().backward()
    assert model.weight.grad is not None
    assert not isinstance(model, DistributedDataParallel)

"""The precision of a device."""

import pytest
import torch

from worker.model.learner import precision_on


@pytest.mark.parametrize(
    ("real", "expected"), [(True, torch.bfloat16), (False, torch.float16)], ids=["H100", "V100"]
)
def test_auto_is_the_fast_precision_of_the_device(
    real: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: real)
    assert precision_on(torch.device("cuda", 0), "auto") is expected
    assert precision_on(torch.device("cuda", 0), "fp32") is None
    assert precision_on(torch.device("cpu"), "auto") is None

"""Records of evaluations with a given confusion."""

import io
from collections.abc import Sequence

import numpy as np
import torch

from worker.judge.counter import Counter
from worker.judge.tally import Tally
from worker.judge.tally_file import encode_tally
from worker.store import Store


def tally_with(confusion: Sequence[Sequence[int]], classes: int) -> Tally:
    """The sums of images of which (true, predicted, count) are these."""
    labels = torch.tensor([true for true, _, count in confusion for _ in range(count)])
    predicted = [guess for _, guess, count in confusion for _ in range(count)]
    logits = torch.zeros(len(labels), classes)
    logits[range(len(labels)), predicted] = 2.0
    counter = Counter(classes, torch.device("cpu"))
    counter.add(logits, labels)
    return counter.own()


def evaluation_file(confusion: Sequence[Sequence[int]], classes: int) -> bytes:
    tally = tally_with(confusion, classes)
    outcomes = [2 if true == guess else 1 for true, guess, count in confusion for _ in range(count)]
    return encode_tally(tally, np.array(outcomes, np.uint8))


def read_confusion(store: Store, key: str) -> np.ndarray:
    """The confusion counts in a record."""
    with np.load(io.BytesIO(store.get(key)), allow_pickle=False) as arrays:
        return arrays["rows"]

"""Commits and publications of small parts."""

import torch
from torch import nn

from worker.checkpoint.commit import (
    CommitName,
    publish_commit,
    write_parts,
)
from worker.checkpoint.publication_record import stage_part
from worker.checkpoint.publish import publish
from worker.checkpoint.tensor_files import stream_bytes
from worker.store import Store

PARTS = {
    "model.safetensors": b"weights",
    "optimizer.safetensors": b"moments",
    "state.json": b"{}",
}


def write_commit(store: Store, name: CommitName, parts: dict[str, bytes]) -> None:
    streams = {part: stream_bytes(data) for part, data in parts.items()}
    publish_commit(store, name, write_parts(store, name, streams))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(5, 3, 4, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def published(store: Store, attempt: int = 1, epochs: int = 1) -> bool:
    data = f'{{"by": {attempt}}}'.encode()
    part = stage_part(store, attempt, "final/model.json", stream_bytes(data))
    result = {"epochs": epochs, "step": 6, "weights": {"step": 6, "accuracy": None}}
    return publish(store, attempt, [part], result=result, check=lambda: None)

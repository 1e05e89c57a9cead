"""Where this process stands among the ranks: detected from the environment, purely.

Environments other than these are told apart by one variable each, in the order of `detect`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.errors import ConfigurationError
from worker.train.rank import Rank

_PORT = 29400


@dataclass(frozen=True)
class Spawn:
    """This process starts `local_world_size` ranks itself, as node `node_rank` of `nodes`."""

    node_rank: int
    nodes: int
    local_world_size: int
    master_addr: str
    master_port: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.local_world_size

    def ranks(self) -> list[Rank]:
        """The ranks to start here."""
        first = self.node_rank * self.local_world_size
        return [
            Rank(
                first + local,
                self.world_size,
                local,
                self.local_world_size,
                self.master_addr,
                self.master_port,
            )
            for local in range(self.local_world_size)
        ]


def detect(env: Mapping[str, str], gpus: int, nproc: int | None) -> Rank | Spawn:
    """Find out who starts the ranks; `nproc` is the number of ranks asked for on this node.

    Raises `ConfigurationError` for a missing or malformed variable, naming it.
    """
    per_node = nproc or max(gpus, 1)
    if 0 < gpus < per_node:
        raise ConfigurationError(f"--nproc: {per_node} ranks, but {gpus} GPUs; give at most {gpus}")
    if "RANK" in env:
        _refuse_nproc(nproc, "RANK")
        return Rank(
            _integer(env, "RANK"),
            _integer(env, "WORLD_SIZE"),
            _integer(env, "LOCAL_RANK"),
            _integer(env, "LOCAL_WORLD_SIZE", "1"),
            _text(env, "MASTER_ADDR"),
            _integer(env, "MASTER_PORT"),
        )
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        _refuse_nproc(nproc, "SLURM_PROCID")
        return _slurm(env)
    if "JOB_COMPLETION_INDEX" in env:
        index, nodes = _integer(env, "JOB_COMPLETION_INDEX"), _integer(env, "WORKER_NODES")
        if index >= nodes:
            raise ConfigurationError(
                f"WORKER_NODES: {nodes}, but this is pod {index}, counted from 0; "
                "set it to the Job's completions"
            )
        address = "localhost" if nodes == 1 else _text(env, "MASTER_ADDR")
        port = _integer(env, "MASTER_PORT", str(_PORT))
        return Spawn(index, nodes, per_node, address, port)
    return Spawn(0, 1, per_node, "localhost", _PORT)


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: `node[01-04,7],gpu3` gives `node01`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodelist)
    if not match:
        raise ConfigurationError(f"SLURM_JOB_NODELIST: cannot read {nodelist!r}; set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())


def require_divisible(batch_size: int, world_size: int) -> None:
    """Raise `ConfigurationError` unless the ranks can share the global batch evenly."""
    if batch_size % world_size:
        sizes = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
        near = sorted(sorted(sizes, key=lambda size: abs(size - world_size))[:3])
        raise ConfigurationError(
            f"train.batch_size: {batch_size} is not a multiple of the {world_size} ranks; "
            f"start {', '.join(map(str, near))} ranks or change the batch"
        )


def _slurm(env: Mapping[str, str]) -> Rank:
    per_node = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    job = _integer(env, "SLURM_JOB_ID")
    return Rank(
        _integer(env, "SLURM_PROCID"),
        _integer(env, "SLURM_NTASKS"),
        _integer(env, "SLURM_LOCALID"),
        int(per_node.group()) if per_node else 1,
        env.get("MASTER_ADDR") or first_host(_text(env, "SLURM_JOB_NODELIST")),
        # Jobs that share a node must not share a port.
        _integer(env, "MASTER_PORT", str(20000 + job % 20000)),
    )


def _refuse_nproc(nproc: int | None, variable: str) -> None:
    if nproc is not None:
        raise ConfigurationError(f"--nproc: {variable} says that the ranks are started elsewhere")


def _text(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise ConfigurationError(f"{name}: not set, but needed to find the other ranks")
    return env[name]


def _integer(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = _text(env, name) if default is None else env.get(name, default)
    if not text.isdecimal():
        raise ConfigurationError(f"{name}: must be a whole number, not {text!r}")
    return int(text)

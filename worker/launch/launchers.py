"""Detection of the launcher that starts the ranks, from environment variables.

Each launcher is identified by a single variable; `detect` checks these in order.
"""

import re
import socket
from collections.abc import Callable, Mapping

from worker.environment import LAST_PORT, Settings, whole_number
from worker.errors import ConfigurationError
from worker.launch.topology import MAX_NODES, PORT, Spawn, one_node
from worker.ranks.rank import Rank

_WHOLE = re.compile(r"[0-9]{1,9}")
_MAX_HOST, _MAX_LABEL = 253, 63
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[\w.-]{1,32})?|\[[0-9A-Fa-f:.]{2,45}(%[\w.-]{1,32})?\]")


def detect(
    env: Mapping[str, str],
    gpus: int,
    nproc: int | None,
    own_name: Callable[[], str] = socket.getfqdn,
) -> Rank | Spawn:
    """Determine from the environment which launcher starts the ranks.

    Args:
        env: The environment.
        gpus: The number of GPUs on this node.
        nproc: The number of ranks requested on this node; None for one per GPU.
        own_name: Returns this machine's fully qualified name, which Kubernetes sets in each pod of
            an Indexed Job.

    Returns:
        The rank of this process, or the ranks that it must start.

    Raises:
        ConfigurationError: If a variable is missing or malformed; the message names it.
    """
    per_node = nproc or max(gpus, 1)
    if 0 < gpus < per_node:
        raise ConfigurationError(f"--nproc: {per_node} ranks, but {gpus} GPUs; set at most {gpus}")
    if "LOCAL_RANK" in env:
        return _torchrun(env, nproc)
    # Kubeflow's PyTorchJob also sets RANK, but to the index of the node.
    if "PET_NNODES" in env:
        return _kubeflow(env, per_node, nproc)
    if "RANK" in env:
        raise ConfigurationError("LOCAL_RANK: not set, although RANK is; start ranks with torchrun")
    if "SLURM_JOB_ID" in env:
        return _slurm(env, per_node, nproc)
    if "JOB_COMPLETION_INDEX" in env:
        return _indexed_job(env, per_node, own_name)
    return one_node(per_node)


def without_peers(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what makes pods meet, for work that each does by itself."""
    return {
        name: value
        for name, value in env.items()
        if name != "JOB_COMPLETION_INDEX" and not name.startswith("PET_")
    }


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list: `node[01-04,7],gpu3` yields `node01`."""
    # Groups: the prefix, the first number in brackets (with its leading zeros), the suffix.
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodelist)
    if not match or len(nodelist) > 1 << 20:
        raise ConfigurationError(
            f"SLURM_STEP_NODELIST: cannot read {nodelist[:99]!r}; set MASTER_ADDR"
        )
    return "".join(part or "" for part in match.groups())


def _torchrun(env: Mapping[str, str], nproc: int | None) -> Rank:
    _refuse_nproc(nproc, "LOCAL_RANK")
    rank = Rank(
        rank=_integer(env, "RANK"),
        world_size=_integer(env, "WORLD_SIZE", least=1),
        local_rank=_integer(env, "LOCAL_RANK"),
        local_world_size=_integer(env, "LOCAL_WORLD_SIZE", "1", least=1),
        master_addr=_host(env, "MASTER_ADDR"),
        master_port=_port(env, "MASTER_PORT"),
    )
    _require_below("RANK", rank.rank, "WORLD_SIZE", rank.world_size)
    if "LOCAL_WORLD_SIZE" in env:
        _require_below("LOCAL_RANK", rank.local_rank, "LOCAL_WORLD_SIZE", rank.local_world_size)
    return rank


def _kubeflow(env: Mapping[str, str], per_node: int, nproc: int | None) -> Spawn:
    """Return the ranks to start if `worker` replaces torchrun as a pod's command."""
    if not _WHOLE.fullmatch(env["PET_NNODES"]):
        raise ConfigurationError(
            f"PET_NNODES: must be a fixed number of nodes, not {env['PET_NNODES']!r}; "
            "to change the number, start the job again"
        )
    local = env.get("PET_NPROC_PER_NODE", "auto")
    if local not in ("auto", "gpu", "cpu"):
        _refuse_nproc(nproc, "PET_NPROC_PER_NODE")
        per_node = _integer(env, "PET_NPROC_PER_NODE", least=1)
    nodes = _integer(env, "PET_NNODES", least=1)
    if nodes == 1:
        return one_node(per_node)
    port = _port(env, "PET_MASTER_PORT", str(PORT))
    node = _integer(env, "PET_NODE_RANK")
    _require_below("PET_NODE_RANK", node, "PET_NNODES", nodes)
    return Spawn(
        node_rank=node,
        nodes=nodes,
        local_world_size=per_node,
        master_addr=_host(env, "PET_MASTER_ADDR"),
        master_port=port,
    )


def _slurm(env: Mapping[str, str], per_node: int, nproc: int | None) -> Rank | Spawn:
    """Return this task's rank, or the ranks to start if there is one task per node."""
    if _integer(env, "SLURM_HET_SIZE", "1") > 1:
        raise ConfigurationError(
            "SLURM_HET_SIZE: heterogeneous jobs are not supported, as all ranks get equal shares; "
            "request a single set of resources"
        )
    in_step = "SLURM_STEP_ID" in env
    # The job's variables describe its allocation; a step may have fewer tasks.
    tasks = _integer(env, "SLURM_STEP_NUM_TASKS" if in_step else "SLURM_NTASKS", "1", least=1)
    if tasks == 1:
        return one_node(per_node)
    if not in_step:
        raise ConfigurationError(
            f"SLURM_NTASKS: the job has {tasks} tasks, but this is its batch script; "
            "put `srun` before `worker`"
        )
    address = first_host(_text(env, "SLURM_STEP_NODELIST"))
    if env.get("MASTER_ADDR"):
        address = _host(env, "MASTER_ADDR")
    # Jobs that share a node must not share a port.
    port = _port(env, "MASTER_PORT", str(20000 + _integer(env, "SLURM_JOB_ID") % 20000))
    nodes = _integer(env, "SLURM_STEP_NUM_NODES", least=1)
    node = _integer(env, "SLURM_NODEID")
    _require_below("SLURM_NODEID", node, "SLURM_STEP_NUM_NODES", nodes)
    # One task per node: each starts the ranks of its node. Otherwise, each task is a rank.
    if tasks == nodes:
        return Spawn(
            node_rank=node,
            nodes=nodes,
            local_world_size=per_node,
            master_addr=address,
            master_port=port,
        )
    _refuse_nproc(nproc, "SLURM_STEP_NUM_TASKS")
    local = _tasks_per_node(_text(env, "SLURM_STEP_TASKS_PER_NODE"))
    if len(local) != nodes:
        raise ConfigurationError(
            f"SLURM_STEP_TASKS_PER_NODE: lists {len(local)} nodes, but SLURM_STEP_NUM_NODES is "
            f"{nodes}; start the step with srun"
        )
    # The list is in the order of SLURM_NODEID.
    local_world_size = local[node]
    rank, local_rank = _integer(env, "SLURM_PROCID"), _integer(env, "SLURM_LOCALID")
    _require_below("SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", tasks)
    # Slurm binds each task to its own cores if the job sets their number.
    names = [name for name in ("SRUN_CPUS_PER_TASK", "SLURM_CPUS_PER_TASK") if name in env]
    cores = _integer(env, names[0], least=1) if names else None
    return Rank(
        rank=rank,
        world_size=tasks,
        local_rank=local_rank,
        local_world_size=local_world_size,
        master_addr=address,
        master_port=port,
        cores=cores,
    )


def _tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks on each node of a step: `2(x3),1` means 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        # Checked before the list grows, as `1(x999999)` is short but may be repeated.
        if not match or len(counts) + int(match[2] or 1) > MAX_NODES:
            raise ConfigurationError(f"SLURM_STEP_TASKS_PER_NODE: cannot read {text[:99]!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _indexed_job(env: Mapping[str, str], per_node: int, own_name: Callable[[], str]) -> Spawn:
    index, nodes = _integer(env, "JOB_COMPLETION_INDEX"), Settings(env).nodes
    if nodes is None:
        raise ConfigurationError("WORKER_NODES: not set; set it to the Job's completions")
    if index >= nodes:
        raise ConfigurationError(
            f"WORKER_NODES: {nodes}, but this is pod {index}, counted from 0; "
            "set it to the Job's completions"
        )
    if nodes == 1:
        return one_node(per_node)
    named = bool(env.get("MASTER_ADDR"))
    address = _host(env, "MASTER_ADDR") if named else _first_pod(own_name(), index)
    return Spawn(
        node_rank=index,
        nodes=nodes,
        local_world_size=per_node,
        master_addr=address,
        master_port=_port(env, "MASTER_PORT", str(PORT)),
    )


def _first_pod(own: str, index: int) -> str:
    """Return pod 0's name from pod name `own`: `train-2.worker.ns` gives `train-0.worker.ns`.

    Names follow the pattern of an Indexed Job's pods, whatever the names of the Job and its Service
    are: https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
    """
    host, dot, domain = own.partition(".")
    if not dot or not host.endswith(f"-{index}"):
        raise ConfigurationError(
            "MASTER_ADDR: not set, and pod 0's name cannot be derived from this pod's name, "
            f"{own!r}; set a subdomain on the pods and create a headless Service of that name"
        )
    return f"{host.removesuffix(f'-{index}')}-0{dot}{domain}"


def _require_below(name: str, value: int, limit_name: str, limit: int) -> None:
    if value >= limit:
        raise ConfigurationError(f"{name}: {value}, but must be below {limit_name} ({limit})")


def _refuse_nproc(nproc: int | None, variable: str) -> None:
    if nproc is not None:
        raise ConfigurationError(
            f"--nproc: {variable} shows that the launcher sets the number of ranks; remove --nproc"
        )


def _text(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise ConfigurationError(f"{name}: not set, but needed to find the other ranks")
    return env[name]


def _integer(env: Mapping[str, str], name: str, default: str | None = None, least: int = 0) -> int:
    if default is None:
        _text(env, name)
    return whole_number(env, name, default=default, least=least)


def _port(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    port = _integer(env, name, default, least=1)
    if port > LAST_PORT:
        raise ConfigurationError(f"{name}: must be a port up to {LAST_PORT}, not {port}")
    return port


def _host(env: Mapping[str, str], name: str) -> str:
    """Return a host name or address (RFC 1123, or anything that looks like IPv6)."""
    host = _text(env, name)
    labels = host.rstrip(".").split(".")
    named = len(host) <= _MAX_HOST and all(_LABEL.fullmatch(label) for label in labels)
    if not named and not _IPV6.fullmatch(host):
        raise ConfigurationError(f"{name}: {host[:_MAX_LABEL]!r} is not a host name or address")
    return host.strip("[]")  # brackets belong to URLs; the resolver knows none

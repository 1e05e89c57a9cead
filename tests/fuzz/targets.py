"""What is fuzzed: each target makes a case by chance, and runs it to one of the outcomes allowed.

A target returns a word for what came of it: that it was taken, that a sample was bad, or the exit
code. Whatever else it raises is a fault, as is a success that is none.
"""

import dataclasses
import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xxhash
from PIL import Image
from torch import nn

from bench.learners import CPU, everything, manifest_of
from tests.fuzz.memory import MemoryStore
from tests.fuzz.mutation import damaged, damaged_json, text_of
from tests.fuzz.source_targets import dataset_case, run_dataset, run_table, table_case
from tests.support.evaluations import evaluation_file
from tests.support.snapshots import snapshot_of
from worker.checkpoint.claim import claim_attempt, ensure_newest
from worker.checkpoint.commit import (
    CommitName,
    list_commits,
    publish_commit,
    read_commit,
    write_parts,
)
from worker.checkpoint.output_owner import owner_of
from worker.checkpoint.publication_record import stage_part
from worker.checkpoint.publish import publish, settle
from worker.checkpoint.snapshot import restore_snapshot
from worker.checkpoint.tensor_files import stream_bytes
from worker.checkpoint.training_state import State
from worker.data.decode_image import ImageSpec, decode
from worker.data.index import Address, Index, Shard, parse_address, read_index
from worker.data.reader import BadSample
from worker.data.shard_scan import scan_shard
from worker.data.sidecar import SIDECAR_DTYPE, decode_sidecar
from worker.environment import Settings
from worker.errors import ConfigurationError, WorkerError
from worker.launch.launchers import detect
from worker.manifest import load_manifest
from worker.model.foreign_weights import read_state
from worker.model.learner import build_learner
from worker.model.pretrained_weights import _require_sound
from worker.ranks.rank import Rank
from worker.redaction import redacted
from worker.report.compare import compare_runs
from worker.report.html_page import run_page
from worker.report.read_run import read_run
from worker.report.status import describe_status, read_status
from worker.store import open_store, read_uri

TAKEN, BAD_SAMPLE = "taken", "bad sample"
_MAX_LINES = 22  # a head, and at most 20 mistakes and more
_MAX_PIXELS = 4_000_000
_PAGE_SHARE = 0.02  # of cases of a report whose page is drawn, which takes a second


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that reads what others wrote; `share` is how much of the cases it gets."""

    name: str
    share: float
    make: Callable[[Random], Any]
    run: Callable[[Any], str]
    codes: tuple[int, ...] = (78,)
    """The exit codes that are right for what it reads."""


def outcome_of(target: Target, case: Any) -> str:
    """The outcome of a case; raises whatever must not come of it."""
    try:
        return target.run(case)
    except BadSample as problem:
        _require_lines(str(problem))
        return BAD_SAMPLE
    except WorkerError as error:
        _require(int(error.code) in target.codes, f"exit code {int(error.code)}: {error}")
        if error.code == ConfigurationError.code:
            _require_lines(str(error))
        return str(int(error.code))


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)


def _require_lines(text: str) -> None:
    """One line, or a list of mistakes."""
    lines = text.splitlines()
    _require(bool(lines) and len(lines) <= _MAX_LINES, f"is no line: {text[:300]!r}")
    _require(all(line.startswith("  ") for line in lines[1:]), f"is no list: {text[:300]!r}")
    _require(len(text) < 20_000, f"a line of {len(text)} characters")


# Manifests

_MANIFEST = """\
version: 1
job: ants-bees-b0
output: s3://runs/ants-bees-b0/
data: {train: "s3://datasets/a/train-{000..009}.tar", val: s3://datasets/a/val/, image_size: 64}
model: {backbone: efficientnet_b0, weights: s3://models/b0.safetensors}
optimizer:
  name: adam
  lr: 1.0e-3
  weight_decay: 1.0e-5
  schedule: {name: cosine, warmup: {epochs: 0.5}}
  groups:
    - {match: features.1, scale: 0.05, freeze: {epochs: 1, block_every: 0.5}}
    - &b {match: [features.2, features.3], scale: 0.1}
    - {match: head, freeze: always}
    - {match: "*", layer_decay: 0.9}
train: {epochs: 6, batch_size: 64, seed: 0, class_weights: {ant: 2.0}, early_stop: {patience: 2}}
checkpoint: {every_steps: 10, keep: 3}
"""
_folder = Path(
    tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)


def _manifest_case(chance: Random) -> bytes:
    if chance.random() < 0.5:
        return damaged(_MANIFEST.encode(), chance)
    from ruamel.yaml import YAML

    return damaged_json(YAML(typ="safe", pure=True).load(_MANIFEST), chance)


def _run_manifest(data: bytes) -> str:
    path = _folder / "job.yaml"
    path.write_bytes(data)
    manifest = load_manifest(str(path))
    _require(manifest.model_dump_json() != "", "cannot be written")
    return TAKEN


# Data sets


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    y, x = np.mgrid[0:24, 0:40]
    pixels = np.stack([x * 6, y * 10, (x * y) % 256], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    return exif.tobytes()


@functools.cache
def _pictures() -> list[bytes]:
    deep = io.BytesIO()
    Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)).save(deep, "PNG")
    return [
        _picture("JPEG", exif=_exif()),
        _picture("JPEG", progressive=True),
        _picture("JPEG", "L"),
        _picture("JPEG", "CMYK"),
        _picture("PNG", exif=_exif()),
        _picture("PNG", "P"),
        _picture("PNG", "RGBA"),
        deep.getvalue(),
        _picture("WEBP", exif=_exif()),
        _picture("WEBP", lossless=True),
    ]


def _picture_case(chance: Random) -> bytes:
    pictures = _pictures()
    return damaged(chance.choice(pictures), chance, pictures)


def _run_picture(data: bytes) -> str:
    image = decode(memoryview(data), ImageSpec(_MAX_PIXELS, depth=12))
    _require(image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3, "no image")
    _require(0 < image.shape[1] * image.shape[2] <= _MAX_PIXELS, f"of {list(image.shape)}")
    return TAKEN


@functools.cache
def _tars() -> list[bytes]:
    tars = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for number in range(3):
                long = "" if form == tarfile.USTAR_FORMAT else "long-folder/" * 12
                label = [("cls", b"cat\n"), ("json", b'{"label": "dog", "x": [1]}')][number % 2]
                for suffix, data in (label, ("jpg", _pictures()[0])):
                    info = tarfile.TarInfo(f"{long}{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        tars.append(buffer.getvalue())
    return tars


def _tar_case(chance: Random) -> bytes:
    data = bytearray(damaged(chance.choice(_tars()), chance, _tars()))
    # A header with a wrong checksum is soon done with; most are to be believed.
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar" and chance.random() < 0.9:
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def _run_tar(data: bytes) -> str:
    scan = scan_shard(lambda start, stop: data[start:stop], len(data))
    end = 0
    for row in scan.rows:
        _require(end <= row.offset and row.offset + row.length <= len(data), f"row {row}")
        _require(row.image_offset + row.image_length <= row.length, f"row {row}")
        whole = data[row.offset : row.offset + row.length]
        _require(xxhash.xxh3_64_intdigest(whole) == row.digest, "another digest")
        row.label.encode()
        end = row.offset + row.length
    for problem in scan.problems:
        _require_lines(problem.text)
    _require(bool(scan.rows or scan.problems), "neither rows nor problems")
    return BAD_SAMPLE if scan.problems else TAKEN


_INDEX = {
    "version": 2,
    "classes": ["ant", "bee"],
    "shards": [
        {
            "name": f"shard-{number:06d}.tar",
            "bytes": 4096,
            "samples": 3,
            "sha256": "0" * 64,
            "sidecar_digest": "0" * 16,
        }
        for number in range(3)
    ],
}


def _run_index(data: bytes) -> str:
    index = read_index(Address(MemoryStore({"index.json": data}), None))
    _require(index.samples > 0 and len(index.counts) == len(index.shards), "no samples")
    _require(index == Index.model_validate_json(index.model_dump_json()), "is not read back")
    return TAKEN


def _sidecar_case(chance: Random) -> tuple[bytes, int, int]:
    rows = np.zeros(4, SIDECAR_DTYPE)
    rows["offset"], rows["length"] = np.arange(4) * 1024, 1000
    rows["image_offset"], rows["image_length"], rows["label"] = 512, 400, [0, 1, 0, 1]
    for _ in range(chance.randrange(3)):
        name = chance.choice(SIDECAR_DTYPE.names or ())
        limits = np.iinfo(SIDECAR_DTYPE[name])
        rows[name][chance.randrange(4)] = chance.choice((limits.min, limits.max, 0, 1, 1000))
    buffer = io.BytesIO()
    np.save(buffer, rows[: chance.choice((4, 4, 3, 0))])
    data = buffer.getvalue()
    return (
        damaged(data, chance) if chance.random() < 0.5 else data,
        chance.choice((4, 4, 3, 5)),
        chance.choice((4096, 4096, 3000, 0)),
    )


def _run_sidecar(case: tuple[bytes, int, int]) -> str:
    data, samples, size = case
    digest = xxhash.xxh3_64_hexdigest(data)
    shard = Shard(name="a.tar", bytes=size, samples=samples, sha256="0" * 64, sidecar_digest=digest)
    try:
        rows = decode_sidecar(data, shard, 2)
    except ValueError as error:
        _require_lines(str(error))
        return BAD_SAMPLE
    _require(len(rows) == samples, "another count")
    for offset, length, _, first, image, *_, label in rows.tolist():
        _require(offset >= 0 and offset + length <= size, "outside of the shard")
        _require(first + image <= length and label in (0, 1), "outside of the sample")
    return TAKEN


_BRACES = ("{", "}", "{0..9}", "{000..099}", "{a..z}", ",", "..", ".tar", "s3://b/", "x-", "/", "9")


def _run_pattern(text: str) -> str:
    address = parse_address(f"{text}.tar" if len(text) % 3 else text)
    _require(len(address.names or ()) <= 1_000_000, "too many names")
    return TAKEN


_ADDRESS = ("s3://", "file://", "file:///", "/", "bucket", "..", "%00", "?", "X-Amz-Signature=1", "@",
            "a:b@", "[::1", "]", "é", "~", " ", "localhost", "//", "\\", "x" * 300)  # fmt: skip


def _run_address(text: str) -> str:
    store = open_store(text)
    _require("\n" not in store.uri, "an address of several lines")
    if not text.startswith("s3:"):
        read_uri(f"{_folder}/nothing/{text.lstrip('/')}")
    return TAKEN


# State


@functools.cache
def _learner_parts() -> dict[str, bytes]:
    learner = _learner()
    nn.functional.cross_entropy(
        learner.model(torch.ones(4, 3, 6, 6)), torch.zeros(4).long()
    ).backward()
    learner.optimizer.step()
    state = dataclasses.asdict(State(step=8, evaluated=8, accuracy=0.5, bad_samples=(3,)))
    return {name: bytes(data) for name, data in snapshot_of(learner, state).items()}


def _learner() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    settings = manifest_of([{"match": "*"}], {"ema": 0.9})
    return build_learner(model, everything(model, 0.1), settings, CPU)


def _state_case(chance: Random) -> dict[str, bytes]:
    parts = dict(_learner_parts())
    name = chance.choice(list(parts))
    if name == "state.json":
        parts[name] = damaged_json(json.loads(parts[name]), chance)
    elif chance.random() < 0.5:
        parts[name] = damaged(parts[name], chance, list(parts.values()))
    else:
        tensors = safetensors.torch.load(parts[name])
        key = chance.choice(list(tensors))
        match chance.randrange(4):
            case 0:
                del tensors[key]
            case 1:
                tensors[key] = torch.zeros(chance.choice(((), (0,), (4, 4), (1, 3, 3, 3))))
            case 2:
                tensors[key] = tensors[key].to(chance.choice((torch.float64, torch.int64)))
            case _:
                tensors[f"{key}.more"] = tensors[key].clone()
        parts[name] = safetensors.torch.save(tensors)
    return parts


@functools.cache
def _restored() -> Any:
    return _learner()


def _run_state(parts: dict[str, bytes]) -> str:
    learner = _restored()
    data = {name: bytearray(part) for name, part in parts.items()}
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    try:
        State.parse(bytes(data["state.json"]))
        restore_snapshot(data, learner)
    except ValueError as error:
        for name, tensor in learner.model.state_dict().items():
            same = torch.equal(tensor, before[name]) or not tensor.isfinite().all()
            _require(same, f"changed {name} before {error}")
        return "passed over"
    return TAKEN


@functools.cache
def _finished() -> dict[str, bytes]:
    """A run with three commits, which has published its result."""
    store = MemoryStore()
    claim_attempt(store, {"job": "ants"}, {"job": "ants", "train": {"epochs": 2}}, lambda: None)
    for step in (2, 4, 6):
        streams = {name: stream_bytes(data) for name, data in _learner_parts().items()}
        publish_commit(store, CommitName(step, 1), write_parts(store, CommitName(step, 1), streams))
    part = stage_part(store, 1, "final/model.json", stream_bytes(b"{}"))
    result = {"epochs": 2, "step": 6, "weights": {"step": 6, "accuracy": 0.5}, "accuracy": 0.5}
    publish(store, 1, [part], result=result, check=lambda: None)
    events = [
        {"time": 1.0, "event": "start", "attempt": 1, "step": 0, "world_size": 1},
        {"time": 2.0, "event": "step", "step": 1, "epoch": 1, "loss": 0.7, "accuracy": 0.5,
         "images_per_second": 9.0, "wait_ratio": 0.1, "rates": {"head": 1e-3},
         "gradient_norms": {"head": 1.0}},
        {"time": 2.5, "event": "commit", "step": 2, "seconds": 0.1, "bytes": 9},
        {"time": 3.0, "event": "evaluation", "epoch": 1, "step": 2, "loss": 0.6, "accuracy": 0.5,
         "top5_accuracy": None},
        {"time": 4.0, "event": "end", "code": 0, "text": ""},
    ]  # fmt: skip
    group = {"name": "head", "match": ["head"], "rate_peak": 1e-3, "weight_decay": 0.0,
             "parameters": 9, "share": 1.0, "release_step": 0}  # fmt: skip
    plan = {"classes": ["ant", "bee"], "steps_per_epoch": 2, "groups": [group]}
    pick = {"sample": "a: 1", "label": 0, "predicted": 1, "confidence": 0.9, "jpeg": "AAAA"}
    pictures = {kind: [pick] for kind in ("wrong", "unsure", "suspects")}
    progress = {"step": 6, "time": 4.0, "total_steps": 6, "world_size": 1, "loss": 0.5,
                "validation_accuracy": 0.5, "remaining_seconds": 1.0, "end": None}  # fmt: skip
    bad = [{"id": 3, "reason": "altered", "text": "its bytes"}]
    records = {
        "plan.json": json.dumps(plan).encode(),
        "environment.json": b'{"torch": "2", "settings": {}}',
        "progress.json": json.dumps(progress).encode(),
        "evaluations/val-00000006.json": json.dumps(pictures).encode(),
        "bad-samples/train.json": json.dumps(bad).encode(),
        "evaluations/val-00000006.npz": evaluation_file([[0, 0, 3], [0, 1, 4], [1, 1, 7]], 2),
        "history/000001.jsonl": "".join(f"{json.dumps(event)}\n" for event in events).encode(),
    }
    for name, data in records.items():
        store.put(f"records/000001/{name}", data)
    return store.objects


def _objects_case(prefixes: tuple[str, ...], chance: Random) -> dict[str, bytes]:
    """A run of which a small object is damaged, or another one named like one."""
    objects = dict(_finished())
    small = [key for key in objects if key.startswith(prefixes)]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        key = chance.choice(small)
        data = objects[key]
        if key.endswith(".json") and chance.random() < 0.7:
            data = damaged_json(json.loads(_finished()[key]), chance)
        elif key.endswith(".jsonl") and chance.random() < 0.7:
            lines = _finished()[key].splitlines()
            at = chance.randrange(len(lines))
            lines[at] = damaged_json(json.loads(lines[at]), chance).replace(b"\n", b" ")
            data = b"\n".join(lines)
        else:
            data = damaged(data, chance)
        other = chance.choice((key, key, key, key.replace("000001", "000009"),
                               key.replace("00000006", "99999999")))  # fmt: skip
        objects[other] = data
    return objects


def _run_commits(objects: dict[str, bytes]) -> str:
    """Whatever is damaged of one checkpoint, the newest whole one is found."""
    store = MemoryStore(objects)
    whole = [name for name in list_commits(store) if read_commit(store, name)]
    untouched = [
        name
        for name in (CommitName(step, 1) for step in (2, 4, 6))
        if all(objects.get(k) == v for k, v in _finished().items() if str(name) in k)
    ]
    _require(set(untouched) <= set(whole), f"{untouched} are whole, found {whole}")
    _require(all(name.step in (2, 4, 6) for name in whole), f"{whole}")
    return TAKEN if len(whole) == 3 else "passed over"


def _run_attempts(objects: dict[str, bytes]) -> str:
    """A start of the same job is never locked out, unless what is there names another one."""
    store = MemoryStore(objects)

    def require_own() -> None:
        owner = owner_of(store)
        if owner and owner.get("job") != "ants":
            raise ConfigurationError("output: belongs to another job")

    number = claim_attempt(store, {"job": "ants"}, {}, require_own)
    ensure_newest(store, number)
    return TAKEN


def _run_result(objects: dict[str, bytes]) -> str:
    """A job that is done stays so, or can be finished again."""
    store = MemoryStore(objects)
    if settle(store, 2):
        return TAKEN
    part = stage_part(store, 2, "final/model.json", stream_bytes(b'{"by": 2}'))
    result = {"epochs": 2, "step": 6, "weights": {"step": 6, "accuracy": 0.5}}
    _require(publish(store, 2, [part], result=result, check=lambda: None), "cannot be finished")
    done = settle(store, 2)
    _require(done is not None and done.attempt == 2, "is not finished")
    return "finished again"


def _run_report(objects: dict[str, bytes]) -> str:
    store = MemoryStore(objects)
    describe_status(read_status(store))
    json.dumps(read_status(store).as_dict())
    run = read_run(store)
    str(compare_runs([run, run]))
    if xxhash.xxh3_64_intdigest(repr(sorted(objects.items())).encode()) % 1000 < 1000 * _PAGE_SHARE:
        run_page(run)
        return "taken, and drawn"
    return TAKEN


# The place

_NAMES = {
    "LOCAL_RANK": "0", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-1", "MASTER_PORT": "29400", "PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto",
    "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "a.b.c", "PET_MASTER_PORT": "29400",
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_HET_SIZE": "1", "SLURM_CPUS_PER_TASK": "2", "JOB_COMPLETION_INDEX": "1",
    "WORKER_NODES": "2", "WORKER_STORE_DEADLINE_SECONDS": "60", "WORKER_GRACE_SECONDS": "30",
    "WORKER_STALL_SECONDS": "900", "WORKER_RENDEZVOUS_SECONDS": "30", "WORKER_METRICS_PORT": "9100",
    "WORKER_COLLECTIVE_SECONDS": "60",
}  # fmt: skip
_ENVIRONMENT = ("", "0", "-1", "1", "2", "99", "abc", "nan", "inf", "1e9", "0x10", "٣", " 1", "1 ",
                "9" * 400, "x" * 300, "a" * 64 + ".b", "[::1]", "n[1-", "2(x", "(x2)", "n[1-3,5]",
                "auto", "gpu", "1:4", "\x00", "a/b", "2(x999999)", ",", "-")  # fmt: skip


def _environment_case(chance: Random) -> dict[str, str]:
    kept = chance.random()
    env = {name: value for name, value in _NAMES.items() if chance.random() < kept}
    for name in list(env):
        if chance.random() < 0.2:
            env[name] = chance.choice(_ENVIRONMENT)
    return env


def _run_environment(env: dict[str, str]) -> str:
    import os
    from unittest import mock

    with mock.patch.object(os, "environ", env):
        Settings.from_env().require_valid()
    place = detect(env, 0, None, lambda: "train-1.worker.ns")
    ranks = [place] if isinstance(place, Rank) else place.ranks()
    for rank in ranks:
        _require(0 <= rank.rank < rank.world_size, f"{rank}")
        _require(0 <= rank.master_port < 65536 and bool(rank.master_addr), f"{rank}")
        "".join(rank.master_addr.split()).encode("idna")
    return TAKEN


_WORDS = ("?", "#", "%3F", "://", "@", ":", "/", "=", "%3D", "&", "sig", "X-Amz-Signature", "token",
          "key", " ", '"', "user", "pass", "s3", "https", "\n", "-", "password", "?" * 50)  # fmt: skip


def _run_redaction(text: str) -> str:
    _require("hunter2-abc" not in redacted(f"https://user:hunter2-abc@host/{text}"), "a login")
    _require(
        "hunter2-abc" not in redacted(f"s3://b/k?X-Amz-Signature=hunter2-abc&{text}"), "signed"
    )
    redacted(text * 20)
    return TAKEN


# Weights


@functools.cache
def _weights() -> list[bytes]:
    state = {name: t.contiguous() for name, t in _learner().model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return [safetensors.torch.save(state), buffer.getvalue()]


def _weights_case(chance: Random) -> tuple[str, bytes]:
    plain, pickled = _weights()
    if chance.random() < 0.5:
        return "w.safetensors", damaged(plain, chance, (pickled,))
    if chance.random() < 0.5:
        return "w.pth", damaged(pickled, chance, (plain,))
    strange: list[Any] = [
        torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64), float("nan"), {"a": 1},
        torch.full((2,), float("inf")), torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        torch.empty(2, device="meta"), [torch.ones(1)], nn.Parameter(torch.ones(1)),
    ]  # fmt: skip
    state = {chance.choice(("a", 1, None, "b.weight")): chance.choice(strange) for _ in range(2)}
    buffer = io.BytesIO()
    torch.save(chance.choice((state, list(state.values()), {"state_dict": state})), buffer)
    return "w.pth", buffer.getvalue()


def _run_weights(case: tuple[str, bytes]) -> str:
    name, data = case
    state, _ = read_state(data, name)
    _require_sound(state, name)
    return TAKEN


TARGETS = (
    Target("manifest", 4, _manifest_case, _run_manifest),
    Target("index", 12, lambda chance: damaged_json(_INDEX, chance), _run_index),
    Target("sidecar", 12, _sidecar_case, _run_sidecar),
    Target("tar", 12, _tar_case, _run_tar),
    Target("picture", 10, _picture_case, _run_picture),
    Target("pattern", 8, lambda chance: text_of(chance, _BRACES), _run_pattern),
    Target("address", 8, lambda chance: text_of(chance, _ADDRESS), _run_address),
    Target(
        "commit", 4, functools.partial(_objects_case, ("commits/", "checkpoints/")), _run_commits
    ),
    Target("state", 4, _state_case, _run_state),
    Target("attempt", 8, functools.partial(_objects_case, ("attempts/",)), _run_attempts),
    Target(
        "result",
        8,
        functools.partial(_objects_case, ("done", "publications/", "final/")),
        _run_result,
    ),
    Target(
        "record",
        3,
        functools.partial(_objects_case, ("attempts/", "commits/", "done", "records/")),
        _run_report,
    ),
    Target("environment", 10, _environment_case, _run_environment),
    Target("redaction", 8, lambda chance: text_of(chance, _WORDS), _run_redaction),
    Target("weights", 2, _weights_case, _run_weights),
    Target("table", 8, table_case, run_table),
    Target("dataset", 8, dataset_case, run_dataset),
)

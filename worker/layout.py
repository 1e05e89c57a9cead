"""The names of all objects that a job writes below its output, and patterns that parse them.

docs/output.md lists them for users. Numbers are zero-padded so that listings are in order.
"""

import re

ATTEMPTS, PUBLICATIONS, RECORDS = "attempts/", "publications/", "records/"
COMMITS, CHECKPOINTS = "commits/", "checkpoints/"
DONE_NAME, MANIFEST_NAME = "done.json", "manifest.json"
CARD_NAME, WEIGHTS_NAME = "model.json", "model.safetensors"
JUDGMENT_NAME, README_NAME = "judgement.json", "README.md"
FINAL = "final/"
FIND_RATES = "find-rates/"
INDEX_NAME = "index.json"
"""The index of a data set, at its root."""
PREDICTION_NAME = "predictions/plan.json"
"""The plan of a prediction, below its output."""
SWEEP_NAME = "sweep.json"
"""The plan of a sweep, at the root of its output."""
CHECK = "check/"
"""Prefix below which `worker check` writes and deletes objects to test its permissions."""
PUBLISHED = (
    r"^(final/model\.(json|safetensors|onnx|pt2)|final/(judgement\.json|README\.md)|manifest\.json"
    r"|final/triton/[a-z0-9-]+/(config\.pbtxt|labels\.txt|1/model\.onnx))$"
)
"""The objects of a result, once it is published."""

CHECKPOINT = re.compile(r"([0-9]{8,12})-([0-9]{6,9})")
"""The name of a checkpoint. Groups: the step, the attempt."""
ATTEMPT = re.compile(r"attempts/([0-9]{6,9})\.json")
"""Group 1: the attempt."""
PUBLICATION = re.compile(r"publications/([0-9]{6,9})\.json")
"""Group 1: the publication."""
HISTORY = re.compile(r"records/(\d+)/history/.*\.jsonl")
"""Group 1: the attempt."""
EVALUATION = re.compile(r"records/(\d+)/evaluations/(val|test)-(\d+)\.(npz|json)")
"""Groups: the attempt, the split, the step, the suffix."""
BAD_SAMPLES = re.compile(r"records/(\d+)/bad-samples/(\w+)\.json")
"""Groups: the attempt, the split."""
LEDGER = re.compile(r"records/(\d+)/samples/(\d+)-(\d+)\.npy")
"""Groups: the attempt, the first step, the first rank."""


def attempt_name(number: int) -> str:
    """Return the name of the object that claims an attempt's number."""
    return f"{ATTEMPTS}{number:06d}.json"


def publication_name(number: int) -> str:
    """Return the name of the object that holds a publication."""
    return f"{PUBLICATIONS}{number:06d}.json"


def commit_name(checkpoint: object) -> str:
    """Return the name of the object that commits the checkpoint `<step>-<attempt>`."""
    return f"{COMMITS}{checkpoint}.json"


def part_name(checkpoint: object, part: str) -> str:
    """Return the name of a part of a checkpoint."""
    return f"{CHECKPOINTS}{checkpoint}/{part}"


def record_name(attempt: int, name: str) -> str:
    """Return the name of a record of an attempt."""
    return f"{RECORDS}{attempt:06d}/{name}"


def staged_name(attempt: int, name: str) -> str:
    """Return the name under which an attempt stages a part of its result."""
    return record_name(attempt, f"result/{name}")


def progress_name(attempt: int) -> str:
    """Return the name of an attempt's progress record."""
    return record_name(attempt, "progress.json")


def plan_name(attempt: int) -> str:
    """Return the name of an attempt's plan record."""
    return record_name(attempt, "plan.json")


def environment_name(attempt: int) -> str:
    """Return the name of an attempt's environment record."""
    return record_name(attempt, "environment.json")


def history_name(attempt: int, piece: int) -> str:
    """Return the name of a piece of an attempt's history."""
    return record_name(attempt, f"history/{piece:06d}.jsonl")


def ledger_name(attempt: int, first: int, rank: int) -> str:
    """Return the name of an object of the ledger.

    Args:
        attempt: The number of the attempt.
        first: The first step in the object.
        rank: The lowest rank in the object.

    Returns:
        The name below the output.
    """
    return record_name(attempt, f"samples/{first:08d}-{rank:04d}.npy")


def tally_name(attempt: int, split: str, step: int) -> str:
    """Return the name of the sums of an evaluation.

    Args:
        attempt: The number of the attempt.
        split: The data set, `val` or `test`.
        step: The step after which the evaluation ran.
    """
    return record_name(attempt, f"evaluations/{split}-{step:08d}.npz")


def pictures_name(attempt: int, split: str, step: int) -> str:
    """Return the name of the list of images of an evaluation; arguments as for `tally_name`."""
    return record_name(attempt, f"evaluations/{split}-{step:08d}.json")


def bad_samples_name(attempt: int, split: str) -> str:
    """Return the name of the list of bad samples of a split, `train` or `val`."""
    return record_name(attempt, f"bad-samples/{split}.json")

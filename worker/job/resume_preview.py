"""Preview of the state that an attempt would resume from, for `worker plan --resume`."""

from dataclasses import asdict, dataclass
from typing import Any

from worker.charts import table
from worker.checkpoint.claim import attempt_numbers, next_number, read_attempt
from worker.checkpoint.commit import list_commits, read_commit, read_commit_record
from worker.checkpoint.publication_record import Done
from worker.job.job import Job
from worker.job.manifest_changes import Change
from worker.logs import count

_MEANING = {
    "silent": "applied silently",
    "noted": "applied and logged",
    "ineffective": "without effect, as training resumes from a checkpoint",
    "refused": "refused with exit code 78",
}


@dataclass(frozen=True, kw_only=True)
class ResumePreview:
    """Expected outcome of starting the job."""

    done: str | None
    """Message that says why there is nothing to do; None if there is work to do."""
    attempt: int
    """The number that the attempt would get."""
    step: int
    """Step that the attempt would resume from."""
    total_steps: int
    """Total steps of the job."""
    commit: str | None
    """Checkpoint that the attempt would resume from; None to start at step 0."""
    bytes: int
    """Size of that checkpoint in bytes; 0 if there is none."""
    passed_over: list[str]
    """Damaged checkpoints that the attempt would skip."""
    steps_lost: int
    """Steps done since that checkpoint, which would be repeated."""
    changes: list[Change]
    """Settings that differ from those of the previous attempt."""

    @property
    def refused(self) -> list[Change]:
        """Changes that would make the job a different experiment."""
        return [change for change in self.changes if change.kind == "refused"]

    def as_dict(self) -> dict[str, Any]:
        """Return the preview as JSON-serializable data."""
        return asdict(self)


def find_resume_preview(job: Job) -> ResumePreview:
    """Preview a start: find and verify checkpoints as it would, but write nothing."""
    commits = [
        name
        for name in list_commits(job.output)
        if name.step <= job.total_steps and read_commit_record(job.output, name)
    ]
    passed_over: list[str] = []
    found, size = None, 0
    for name in commits:
        # Read all parts, as the attempt would: a record alone does not show damage to them.
        parts = read_commit(job.output, name)
        if parts is not None:
            found, size = name, sum(map(len, parts.values()))
            break
        passed_over.append(str(name))
    step = found.step if found else 0
    return ResumePreview(
        done=describe_done(job, job.done) if job.done else None,
        attempt=next_number(
            attempt_numbers(job.output), lambda number: read_attempt(job.output, number)
        ),
        step=step,
        total_steps=job.total_steps,
        commit=str(found) if found else None,
        bytes=size,
        passed_over=passed_over,
        steps_lost=commits[0].step - step if commits else 0,
        changes=job.changes,
    )


def describe_done(job: Job, done: Done) -> str:
    """Return a message that says that the job is finished and how to continue training."""
    return (
        f"job {job.manifest.job} was completed by attempt {done.attempt}: "
        f"{count(done.epochs, 'epoch')}, {count(done.step, 'step')}; nothing to do; "
        "to continue training, raise train.epochs"
    )


def describe_resume_preview(preview: ResumePreview) -> str:
    """Return the preview as text."""
    where = "would start at step 0"
    size = f"{preview.bytes / 1e6:.1f} MB, verified"
    if preview.commit:
        where = f"would resume after step {preview.step}: checkpoint {preview.commit}, {size}"
    lines = [f"resume     attempt {preview.attempt} {where}; total steps: {preview.total_steps}"]
    if preview.done:
        lines = [f"resume     {preview.done}"]
        if preview.commit:
            lines.append(f"           newest checkpoint: {preview.commit}, {size}")
    if preview.passed_over:
        names = ", ".join(preview.passed_over)
        lines.append(f"damaged    {names}; {preview.steps_lost} steps would be repeated")
    if preview.changes:
        rows = [("changed", "before", "now", "outcome")]
        finished = {"noted": "without effect, as the job is done"} if preview.done else {}
        meaning = _MEANING | finished
        rows += [(c.field, str(c.before), str(c.now), meaning[c.kind]) for c in preview.changes]
        lines += ["", *table(rows, left=4)]
    else:
        lines.append("changed    nothing")
    return "\n".join(lines)

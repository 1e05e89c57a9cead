"""The plan of a sweep, with each of its trials checked before any of them starts."""

from worker.charts import table
from worker.errors import ConfigurationError
from worker.job.open_data import JobData, naming_field, open_data
from worker.job.open_job import check_settings, open_job
from worker.launch.topology import require_divisible
from worker.logs import count
from worker.manifest import Manifest, load_manifest
from worker.model.pretrained_weights import load_pretrained
from worker.store import open_store
from worker.sweep.halving import rung_sizes
from worker.sweep.manifest import SweepManifest
from worker.sweep.plan import SweepPlan, make_plan, require_own_output


def plan_sweep(sweep: SweepManifest, ranks: int) -> SweepPlan:
    """Plan a sweep, and check each of its trials as far as that is possible without training.

    Args:
        sweep: The manifest of the sweep.
        ranks: The number of ranks that will train a trial.

    Raises:
        ConfigurationError: If a trial has settings that are not valid (names the first one), or the
            output holds something else.
    """
    with naming_field("base"):
        base = load_manifest(sweep.base)
    plan = make_plan(sweep, base)
    require_own_output(plan, open_store(sweep.output))
    opened: dict[str, JobData] = {}
    weights: set[str] = set()
    for trial in range(len(plan.trials)):
        for repeat in range(len(plan.repeats)):
            manifest = plan.job_manifest(trial, repeat, sweep.output)
            try:
                _check(manifest, ranks, opened, weights)
            except ConfigurationError as error:
                raise ConfigurationError(f"trial {trial}: {error}") from None
    return plan


def _check(manifest: Manifest, ranks: int, opened: dict[str, JobData], weights: set[str]) -> None:
    """Check a job; what other jobs have in common with it is read and loaded only once."""
    require_divisible(manifest.train.batch_size, ranks)
    key = repr(manifest.data)
    if key not in opened:
        opened[key] = open_data(manifest)
    check_settings(manifest, opened[key])
    model, pretrained = manifest.model, manifest.model.pretrained
    known = repr((model.backbone, pretrained, manifest.data.image_size))
    if pretrained and known not in weights:
        weights.add(known)
        load_pretrained(open_job(manifest).backbone, pretrained)


def describe_dry_run(plan: SweepPlan) -> str:
    """Return the rungs and the trials of a sweep as text."""
    sizes = rung_sizes(len(plan.trials), len(plan.rungs), plan.manifest.halving)
    repeats = len(plan.repeats)
    lines = [
        f"{count(size, 'trial')}{f' of {repeats} runs each' if repeats > 1 else ''} "
        f"up to epoch {epochs}"
        for size, epochs in zip(sizes, plan.rungs, strict=True)
    ]
    paths = list(dict.fromkeys(path for trial in plan.trials for path in trial))
    rows = [[str(n), *(str(trial[path]) for path in paths)] for n, trial in enumerate(plan.trials)]
    return "\n".join([*lines, "", *table([["trial", *paths], *rows])])

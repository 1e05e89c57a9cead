"""The `worker` command, which turns the errors of its subcommands into exit codes."""

import os
import sys
from typing import Any, NoReturn

import click
from click._termui_impl import ProgressBar

from worker import __version__
from worker.cli.streams import settle_streams
from worker.errors import ExitCode, StopRequested
from worker.launch.guard import leave, report
from worker.logs import configure_logs
from worker.redaction import redacted


def progress_bar(length: int, label: str) -> ProgressBar[int]:
    """Return a progress bar on stderr, which stays hidden if stderr is not a terminal."""
    return click.progressbar(length=length, label=label, file=sys.stderr)


def settle_torch() -> None:
    """Set the environment variables that torch reads only once, when it is imported."""
    # By default, waiting threads spin, which makes a step up to ten times slower next to busy
    # neighbors or under a CPU quota.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Torch's C++ warnings bypass the log, and concern things that are done on purpose.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


class _Commands(click.Group):
    """Command group that reports any command's error on one line and exits with its code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        settle_streams()  # also for --help
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> NoReturn:
        try:
            code = super().invoke(ctx)
        except click.NoSuchOption as error:
            raise _redacted(_by_manifest(error)) from None
        except click.ClickException as error:
            raise _redacted(error) from None
        except (click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            code = report(StopRequested("stopped on request"))
        except Exception as error:
            code = report(error)
        # The interpreter's own end would take a second with torch, in which a stop signal, no
        # longer handled, would make a success a failure.
        leave(code or ExitCode.DONE)


def _by_manifest(error: click.NoSuchOption) -> click.ClickException:
    """Return the same error or, for a setting of the manifest, one that says where to set it."""
    ctx = error.ctx
    if not ctx or "manifest" not in {parameter.name for parameter in ctx.command.params}:
        return error
    from worker.manifest.keys import path_of_setting
    from worker.sweep.manifest import SweepManifest

    options = (option.lstrip("-") for each in ctx.command.params for option in each.opts)
    name, where = error.option_name.lstrip("-"), "manifest"
    path = path_of_setting(name, options)
    if ctx.command.name == "sweep":
        where = "base job"
        if name in SweepManifest.model_fields:
            path, where = name, "sweep's manifest"
    if not path:
        return error
    return click.UsageError(
        f"No such option {error.option_name!r}; set {path} in the {where}.", ctx
    )


def _redacted(error: click.ClickException) -> click.ClickException:
    """Return the same error with secrets redacted, as it may quote a presigned URL."""
    text = redacted(error.format_message())
    if text == error.format_message():
        return error
    return click.UsageError(text, error.ctx if isinstance(error, click.UsageError) else None)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="auto shows a live status line on a terminal, and writes JSON lines in a Kubernetes or "
    "Slurm job and text lines elsewhere.",
)
@click.pass_context
def main(ctx: click.Context, log_format: str) -> None:
    """Fine-tune image classifiers, with data and results in S3-compatible storage.

    \b
    worker pack photos/ s3://datasets/photos/     any labeled source to shards
    worker inspect s3://datasets/photos/          data set: facts, classes, contact sheet
    worker index s3://datasets/tars/              index existing shards
    worker put job.yaml s3://bucket/              upload a manifest, or weights
    worker models                                 list backbones, and blocks that groups can match
    worker plan s3://bucket/job.yaml              preview a job and its learning rates
    worker check s3://bucket/job.yaml             check everything that the job needs here
    worker find-rates s3://bucket/job.yaml        suggest a base learning rate
    worker train s3://bucket/job.yaml             train, or resume where it stopped
    worker sweep s3://bucket/sweep.yaml           train jobs that differ in a few settings
    worker status s3://runs/a/                    show a run's state; --watch keeps updating it
    worker report s3://runs/a/                    report on a run, as an HTML page
    worker compare s3://runs/a/ s3://runs/b/      compare results, and settings that differ
    worker export s3://runs/a/ --to mlflow:URL    copy a run's record to an experiment tracker
    worker evaluate s3://runs/a/ s3://sets/test/  judge a finished model on a data set
    worker predict s3://runs/a/ photo.jpg         classify pictures with a finished model
    worker average s3://runs/a/ s3://runs/b/ --out s3://runs/mean/    average finished models

    Every address is s3://BUCKET/PREFIX, file:///PATH or a path. Endpoint and credentials come from
    the usual AWS_* variables.

    \b
    Exit codes: 0 done, 2 invalid command line, 65 bad data, 69 infrastructure
    (run again), 70 bug, 75 stopped on request (run again), 76 superseded by a
    newer attempt, 78 invalid manifest, credentials or environment.
    """
    configure_logs(log_format)
    ctx.obj = log_format

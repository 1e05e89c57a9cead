"""Commands that describe the worker itself."""

import json
from pathlib import Path

import click

from worker.cli.group import main
from worker.errors import ConfigurationError


@main.command()
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def models(*, pattern: str, as_json: bool) -> None:
    """List the backbones: parameters, input size, head, and the blocks that groups can match.

    PATTERN selects backbones by name, such as 'resnet*'. A block a+b can be matched by either
    name, a or b; a.1..4 stands for four blocks.
    """
    from fnmatch import fnmatchcase

    from worker.model.catalog import catalog, describe_catalog
    from worker.model.skeleton import known_models, nearest_models

    names = [name for name in known_models() if fnmatchcase(name, pattern)]
    if not names:
        near = nearest_models(pattern.strip("*"))
        remedy = f"; did you mean {near[0]}?" if near else ""
        raise click.BadParameter(f"no backbone is named {pattern!r}{remedy}", param_hint="PATTERN")
    entries = catalog(names)
    rows = [entry.as_dict() for entry in entries]
    click.echo(json.dumps(rows, indent=1) if as_json else describe_catalog(entries))


@main.command()
def metrics() -> None:
    """Print the table of all metrics, in Markdown."""
    from worker.metrics.docs_table import describe_metrics

    click.echo(describe_metrics())


@main.command()
def settings() -> None:
    """Print the table of all WORKER_* environment variables, in Markdown."""
    from worker.environment import describe_environment

    click.echo(describe_environment())


@main.command()
@click.option("--sweep", is_flag=True, help="The manifest of a sweep instead of a job's.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table of all keys instead.")
def schema(*, sweep: bool, markdown: bool) -> None:
    """Print the JSON Schema of the manifest."""
    from worker.manifest import Manifest
    from worker.manifest.reference import describe_keys, describe_manifest
    from worker.sweep.manifest import SweepManifest

    if markdown:
        click.echo(describe_keys(SweepManifest) if sweep else describe_manifest(), nl=False)
        return
    section = SweepManifest if sweep else Manifest
    click.echo(json.dumps(section.model_json_schema(), indent=1))


@main.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to keep the pictures in.")
def demo(keep: Path | None) -> None:
    """Run a complete job on an embedded S3 server: pack, plan, train, stop, resume, audit.

    Needs the packages moto[server] and scikit-learn, but no network and no GPU; takes about two
    minutes on 2 cores.
    """
    try:
        from worker.cli.demo import run_demo
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the demo needs {error.name}; pip install 'moto[server]' scikit-learn"
        ) from None
    run_demo(keep)

"""Commands that use a finished model."""

import json
from typing import Any

import click
from click.core import ParameterSource

from worker.cli.group import main, settle_torch
from worker.cli.streams import has_reader
from worker.errors import ExitCode, most_fatal
from worker.logs import count, is_live
from worker.redaction import redacted


@main.command()
@click.argument("model")
@click.argument("dataset")
@click.option("--out", help="Prefix to write judgement.json and judgement.html to.")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    help="Ranks to start on this machine; default: one per GPU, or one on the CPU.",
)
@click.pass_obj
def evaluate(
    log_format: str, *, model: str, dataset: str, out: str | None, nproc: int | None
) -> int:
    """Judge MODEL on DATASET: every figure with its 95% interval.

    MODEL is the output of a finished job or its final/ folder, DATASET any packed or indexed set.
    Classes are matched by name: images of classes that the model does not know are left out and
    counted. The figures are the same on any number of ranks.
    """
    from worker.ranks.stop_signal import StopFlag

    stop = StopFlag(commits=False)
    stop.install()
    settle_torch()
    from worker.launch.evaluate import run_evaluation

    live = is_live(log_format)
    return run_evaluation(model, dataset, out, nproc=nproc, stop=stop, live=live)


@main.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of classes per image.",
)
@click.option("--all", "everything", is_flag=True, help="List all classes.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object per image, one per line."
)
@click.option(
    "--out",
    help="Prefix to write the predictions of a whole set to; any number of processes may share the "
    "work.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv", "parquet"]),
    default="jsonl",
    show_default=True,
    help="Format of the files in --out.",
)
@click.option("--embeddings", is_flag=True, help="Also write the features before the head.")
@click.option("--nproc", type=click.IntRange(min=1), help="As for `evaluate`; only with --out.")
@click.pass_obj
def predict(log_format: str, /, **given: Any) -> int:
    """Classify IMAGES with MODEL, the output of a finished job or its final/ folder.

    Each of IMAGES is the address or path of a JPEG, PNG or WebP file, or of a folder of them (a
    prefix must end in a slash). An image that cannot be read is reported, and the others are still
    classified; the exit code is then 65, or 78 if the image does not exist. If the names of the
    folders are classes of the model, the accuracy is printed, too.

    With --out, IMAGES is a whole set: packed or indexed shards, tars without labels, a prefix of
    images, or a list of addresses (.txt). It is predicted in parts, on all ranks; the same command,
    started again or elsewhere, predicts the rest. A bad image is a line with the reason.
    """
    context = click.get_current_context()
    if given["everything"] and context.get_parameter_source("top") is not ParameterSource.DEFAULT:
        raise click.UsageError("--all lists all classes; leave --top out")
    if given["out"]:
        if given["as_json"]:
            raise click.UsageError("--json is for single images; with --out, give --format")
        if len(given["images"]) > 1:
            raise click.UsageError("--out takes one set; list single images in a .txt file")
        return _predict_set(log_format, given)
    for option, name in (("embeddings", "embeddings"), ("nproc", "nproc"), ("form", "format")):
        if context.get_parameter_source(option) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} is for whole sets; give --out")
    top = None if given["everything"] else given["top"]
    return _predict_images(given["model"], given["images"], top, as_json=given["as_json"])


def _predict_set(log_format: str, given: dict[str, Any]) -> int:
    from worker.ranks.stop_signal import StopFlag

    stop = StopFlag(commits=False)
    stop.install()
    settle_torch()
    from worker.launch.predict import PredictionOptions, run_prediction

    options = PredictionOptions(
        top=None if given["everything"] else given["top"],
        format=given["form"],
        embeddings=given["embeddings"],
    )
    return run_prediction(
        given["model"],
        given["images"][0],
        given["out"],
        options,
        nproc=given["nproc"],
        stop=stop,
        live=is_live(log_format),
    )


def _predict_images(model: str, images: tuple[str, ...], top: int | None, *, as_json: bool) -> int:
    from worker.cli.images import find_images, folder_of

    # Before torch is imported, which takes seconds.
    listed = [found for image in images for found in find_images(image)]
    from worker.data.image_formats import MAX_IMAGE_BYTES
    from worker.data.reader import BadSample, require_image_size
    from worker.judge.figure_text import share_text
    from worker.judge.intervals import share
    from worker.model.classifier import load_classifier
    from worker.store import ObjectMissing, read_uri

    classifier = load_classifier(model)
    codes, hits = [ExitCode.DONE], [0, 0]
    for image in listed:
        try:
            data = read_uri(image, MAX_IMAGE_BYTES + 1)
            require_image_size(len(data))
            chances = classifier.predict(data)
        except BadSample as error:
            codes.append(ExitCode.DATA)
            click.echo(f"error: {redacted(image)}: {error}", err=True)
            continue
        except ObjectMissing as error:
            codes.append(ExitCode.CONFIGURATION)
            click.echo(f"error: {redacted(str(error))}", err=True)
            continue
        if folder_of(image) in classifier.card.classes:
            hits[0] += chances[0][0] == folder_of(image)
            hits[1] += 1
        if as_json:
            click.echo(json.dumps({"image": redacted(image), "classes": dict(chances[:top])}))
        else:
            shown = "  ".join(f"{name} {chance:.4f}" for name, chance in chances[:top])
            click.echo(f"{redacted(image)}: {shown}")
        if not has_reader():
            break
    if hits[1]:
        figure = share_text(share(*hits))
        on = f"{count(hits[1], 'image')} in folders named like classes"
        click.echo(f"accuracy {figure} on {on}", err=True)
    return most_fatal(codes)


@main.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", required=True, help="Prefix of the output; the mean goes to final/ in it.")
@click.option(
    "--data",
    "dataset",
    help="Images for BatchNorm's statistics; default: the training set of the first run.",
)
@click.pass_obj
def average(log_format: str, *, runs: tuple[str, ...], out: str, dataset: str | None) -> None:
    """Average the weights of RUNS, finished jobs of one backbone and the same classes.

    The mean of models that were fine-tuned from the same weights, with other seeds or settings,
    often generalizes better than any of them (model soups: Wortsman et al., 2022). BatchNorm's
    statistics are estimated anew in one pass over the images. `worker evaluate` judges the mean.
    """
    if len(runs) == 1:
        raise click.UsageError("averages two or more runs; there is nothing to average in one")
    settle_torch()
    from worker.launch.average import run_average
    from worker.logs import end_live, show_live

    live = is_live(log_format)
    done = 0

    def advance(images: int, total: int) -> None:
        nonlocal done
        done += images
        if live:
            show_live(f"estimating statistics: {done:,} of {total:,} images")

    run_average(runs, out, dataset, advance)
    if live:
        end_live()
    click.echo(f"mean of {count(len(runs), 'run')}: {redacted(out).rstrip('/')}/final/")

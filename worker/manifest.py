"""The job manifest: what is trained on what, and how; plain data that all parts may read.

YAML 1.2 or JSON. Strict: unknown keys and wrong types are refused, and every complaint names the
field's path and the remedy. What depends on the place (endpoint, credentials, ranks, scratch) is
environment and has no key here.
"""

import difflib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from worker.errors import ConfigurationError
from worker.store import ObjectMissing, read_uri


def _as_tuple(value: Any) -> Any:
    """One pattern is a list of one; anything else is left for the type to refuse."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, StringConstraints(min_length=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Patterns = Annotated[
    tuple[Text, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]


class Section(BaseModel):
    """Base of every part of the manifest."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class RandAugment(Section):
    """N operations of one strength on every image (Cubuk et al., 2019)."""

    operations: Count = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class Jitter(Section):
    """How far colours are changed at most, as in torchvision's `ColorJitter`."""

    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Augment(Section):
    """Training augmentation, drawn per (seed, epoch, sample), or per step where batches mix."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Area of the random resized crop, as a share of the image: smallest and largest."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip; 0 where left and right matter."""
    randaugment: RandAugment | None = None
    trivialaugment: bool = False
    """One operation of any strength on every image, in place of RandAugment."""
    jitter: Jitter | None = None
    erasing: Fraction = 0.0
    """Probability that a random box is erased."""
    mixup: NonNegative = 0.0
    """Alpha of MixUp; 0 for none. With `cutmix` too, each batch takes one of the two."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix; 0 for none."""

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        low, high = self.crop_scale
        if not 0 < low <= high:
            raise ValueError("crop_scale must be [smallest, largest] with 0 < smallest <= largest")
        if self.randaugment and self.trivialaugment:
            raise ValueError("give either randaugment or trivialaugment")
        return self


class Shuffle(Section):
    """How far apart the samples of a batch come from; more of both mixes better, in more memory."""

    lanes: Count | None = None
    """Places of the data set that every batch reads from; must divide `train.batch_size`.
    Default: the largest divisor of it up to 32, or up to a sixteenth of the batch."""
    window: Count = 32
    """Samples of a lane that are shuffled among each other."""


class Data(Section):
    """Where the shards are and how their images are prepared."""

    train: Text
    """Prefix that holds the training shards and their `index.json`, or a brace pattern of some of
    them (`s3://bucket/set/train-{000..099}.tar`)."""
    val: Text | None = None
    """The same of the validation shards; without it nothing is evaluated."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Side of the square that the model sees, in pixels; default: the backbone's own."""
    augment: Augment = Augment()
    shuffle: Shuffle = Shuffle()
    decoder: Literal["cpu", "cuda"] = "cpu"
    """`cuda` decodes and crops JPEGs on the GPU, with slightly other pixels."""
    error_budget: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """Share of the samples that may be altered or undecodable and are left out; more end the job
    with exit code 65."""
    max_pixels: Count = 100_000_000
    """Images that would unpack into more are bad samples."""


class Model(Section):
    """The backbone and where its weights come from."""

    backbone: Text
    """Name in `torchvision.models`, such as `efficientnet_b0`."""
    weights: Text = "none"
    """`s3://`, `file://` or path of a safetensors or state-dict file, a torchvision weights name
    such as `IMAGENET1K_V1`, or `none` for a backbone that starts at random."""

    @property
    def pretrained(self) -> str | None:
        """The weights to start from, if any."""
        return None if self.weights == "none" else self.weights


class Group(Section):
    """Parameters that share a learning rate; the first group that matches takes a parameter."""

    match: Patterns
    """Leading components of the parameter's dotted name, each whole or a glob (`features.1`,
    `layer[34]`); `head` and `backbone` in any family; `*` for the rest."""
    scale: Rate | None = None
    """Rate as a multiple of `optimizer.lr`; default 1."""
    lr: Rate | None = None
    """Exact rate, in place of `scale`."""
    weight_decay: NonNegative | None = None
    """Default: `optimizer.weight_decay`."""
    freeze: Literal["always"] | None = None
    """`always`: never trained, BatchNorm statistics kept."""

    @model_validator(mode="after")
    def _one_rate(self) -> "Group":
        if sum(value is not None for value in (self.scale, self.lr, self.freeze)) > 1:
            raise ValueError("give at most one of scale, lr and freeze")
        return self


class Optimizer(Section):
    """Optimiser and graded learning-rate groups."""

    name: Literal["adam", "adamw"] = "adam"
    lr: Rate
    """Base rate, which the groups' `scale` multiplies."""
    weight_decay: NonNegative = 0.0
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    """Every parameter must be matched; `{match: "*"}` last takes whatever is left."""


class Train(Section):
    """Length, batch and seed."""

    epochs: Count
    batch_size: Count
    """Images per optimiser step over all ranks together; the number of ranks must divide it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Checkpoint(Section):
    """When to commit, besides the end of every epoch and a requested stop, and what is kept."""

    every_steps: Count | None = None
    keep: Count = 2
    """Newest checkpoints to keep."""


class Record(Section):
    """What is kept of the run besides its history."""

    samples: bool = False
    """Write which sample every global batch trained on, for `worker audit`."""


class Manifest(Section):
    """One fine-tuning job."""

    version: Literal[1]
    job: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    """Name in logs and metrics: lower-case letters, digits and inner dashes, at most 63."""
    output: Text
    """Prefix below which the job writes everything; one job, one prefix."""
    data: Data
    model: Model
    optimizer: Optimizer
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    record: Record = Record()

    @model_validator(mode="after")
    def _lanes_divide(self) -> "Manifest":
        lanes = self.data.shuffle.lanes
        if lanes and self.train.batch_size % lanes:
            raise ValueError(
                f"data.shuffle.lanes: must divide train.batch_size, {self.train.batch_size}"
            )
        return self


def load_manifest(uri: str) -> Manifest:
    """Read and check the manifest at `s3://`, `file://` or a path.

    Raises `ConfigurationError` with one line per mistake, each naming its field.
    """
    try:
        text = read_uri(uri).decode()
    except ObjectMissing as error:
        raise ConfigurationError(f"manifest {error}; check the address") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"manifest {uri}: not UTF-8 text") from None
    return parse_manifest(text, uri)


def parse_manifest(text: str, uri: str) -> Manifest:
    """Check a manifest's text; `uri` is for messages only."""
    try:
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = str(error.problem or error).splitlines()[0]
        raise ConfigurationError(f"manifest {uri}: line {line}: {problem}") from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"manifest {uri}: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"manifest {uri}: not a mapping; it starts with `version: 1`")
    try:
        # By way of JSON, so that strict mode takes lists for tuples as a manifest writes them.
        text = json.dumps(data, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"manifest {uri}: not plain data: {error}") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        lines = dict.fromkeys(_complaint(detail) for detail in error.errors())
        raise ConfigurationError(f"manifest {uri}: " + "; ".join(lines)) from None


def _complaint(detail: ErrorDetails) -> str:
    """One mistake as `path: what is wrong; what to do`."""
    location = list(detail["loc"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    path = path.lstrip(".")
    if detail["type"] == "missing":
        return f"{path}: missing; add it"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{path}: unknown key; {remedy}"
    if detail["type"] == "string_pattern_mismatch":
        return f"{path}: must be 1 to 63 lower-case letters, digits and inner dashes"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    shown = detail["input"] if isinstance(detail["input"], (str, int, float)) else None
    got = f", not {shown!r}" if shown is not None else ""
    return f"{path}: {message}{got}"


def _known_keys(location: list[Any]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[BaseModel] = Manifest
    for part in location:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            section = Group if part == "groups" else annotation  # type: ignore[assignment]
    return list(section.model_fields)

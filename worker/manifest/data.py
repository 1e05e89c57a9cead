"""The manifest's sections about images: where they are, and how they are prepared."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from worker.manifest.base import Count, Fraction, NonNegative, Section, Text


class RandAugment(Section):
    """N operations of one strength on every image (Cubuk et al., 2019)."""

    operations: Annotated[int, Field(ge=1, le=100)] = 2
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

    lanes: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Places of the data set that every batch reads from; must divide `train.batch_size`.
    Default: the largest divisor of it up to 32, or up to a sixteenth of the batch."""
    window: Annotated[int, Field(ge=1, le=10**6)] = 32
    """Samples of a lane that are shuffled among each other."""


class Data(Section):
    """Where the shards are and how their images are prepared."""

    train: Text
    """Prefix that holds the training shards and their `index.json`, or a brace pattern of some of
    them (`s3://bucket/set/train-{000..099}.tar`)."""
    val: Text | None = None
    """The same of the validation shards; without it nothing is evaluated."""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
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

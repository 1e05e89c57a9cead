"""The manifest's sections about images: where they are, and how they are prepared."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from worker.manifest.base import Count, Fraction, NonNegative, Section, Text


class RandAugment(Section):
    """Several random operations of equal strength on every image (Cubuk et al., 2019)."""

    operations: Annotated[int, Field(ge=1, le=100)] = 2
    """Operations per image."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength, from 0 to 30."""


class Jitter(Section):
    """Limits of random color changes, as in torchvision's `ColorJitter`."""

    brightness: NonNegative = 0.0
    """Largest relative change of brightness."""
    contrast: NonNegative = 0.0
    """Largest relative change of contrast."""
    saturation: NonNegative = 0.0
    """Largest relative change of saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of hue, up to 0.5."""


class Augment(Section):
    """Training augmentation, drawn per (seed, epoch, sample); MixUp and CutMix per (seed, step)."""

    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Area of the random resized crop as a share of the image: smallest and largest."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip; set it to 0 if left and right matter."""
    randaugment: RandAugment | None = None
    """RandAugment (Cubuk et al., 2019): random operations of equal strength on every image."""
    trivialaugment: bool = False
    """TrivialAugment (Müller and Hutter, 2021): one operation of random strength on every image;
    cannot be combined with `randaugment`.
    """
    jitter: Jitter | None = None
    """Random color changes, as in torchvision's `ColorJitter`."""
    erasing: Fraction = 0.0
    """Probability that a random box is erased (Zhong et al., 2017)."""
    mixup: NonNegative = 0.0
    """Alpha of MixUp (Zhang et al., 2017); 0 for none. If `cutmix` is set too, each batch uses one
    of the two."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix (Yun et al., 2019); 0 for none."""

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        low, high = self.crop_scale
        if not 0 < low <= high:
            raise ValueError("crop_scale must be [smallest, largest] with 0 < smallest <= largest")
        if self.randaugment and self.trivialaugment:
            raise ValueError("set either randaugment or trivialaugment")
        return self


class Shuffle(Section):
    """Shuffling of the training set; larger values mix better and use more memory."""

    lanes: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Number of places in the data set that every batch reads from; must divide `train.batch_size`.
    Default: the largest divisor of `train.batch_size` up to 32, or up to a sixteenth of it if that
    is more.
    """
    window: Annotated[int, Field(ge=1, le=10**6)] = 32
    """Samples of a lane that are shuffled together."""


_Side = Annotated[int, Field(ge=8, le=4096)]


class ImageSizes(Section):
    """A smaller size in training than in use (FixRes: Touvron et al., 2019): random crops enlarge
    what they show, so images look alike at both, and training costs less."""

    train: _Side
    """Side length of training images, in pixels."""
    evaluate: _Side
    """Side length of images in evaluation and prediction, in pixels."""


class Fold(Section):
    """K-fold cross-validation without packing anew: folds of `train`, by group or else by key."""

    of: Annotated[int, Field(ge=2, le=1000)]
    """Number of folds."""
    hold: Annotated[int, Field(ge=0)]
    """The fold that is held out and validated on, from 0; takes the place of `val`."""

    @model_validator(mode="after")
    def _within(self) -> "Fold":
        if self.hold >= self.of:
            raise ValueError(f"hold must be below of, {self.of}; folds are counted from 0")
        return self


class Data(Section):
    """The shards, and how their images are prepared."""

    train: Text
    """Prefix of the training shards and their `index.json`, or a brace pattern
    (`s3://bucket/set/train-{000..099}.tar`)."""
    val: Text | None = None
    """Prefix or pattern of the validation shards; if not set, nothing is evaluated."""
    test: Text | None = None
    """Prefix or pattern of the test shards, which are read once, at the end: the model in `final/`
    is judged on them."""
    balance: Fraction = 0.0
    """Class-balanced sampling: `0` sees every image once per epoch, `1` all classes equally often,
    and `0.5` classes in proportion to the square root of their size. Epochs keep their length."""
    fold: Fold | None = None
    """Fold of `train` to hold out for validation; instead of `val`."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each class of `train` to use, such as 0.1; at least one image. A larger share
    contains a smaller one, and another `train.seed` draws another one."""
    without: Text | None = None
    """Address of a text file with the keys of samples of `train` to leave out, one per line."""
    image_size: _Side | ImageSizes | None = None
    """Side length of the model's square input, in pixels, or two of them (`{train: 176, evaluate:
    224}`). Default: the backbone's own."""
    augment: Augment = Augment()
    """Training augmentation."""
    shuffle: Shuffle = Shuffle()
    """Shuffling of the training set before batching."""
    decoder: Literal["cpu", "cuda"] = "cpu"
    """`cpu`, or `cuda` to decode and crop JPEGs on the GPU, with slightly different pixels."""
    error_budget: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """Share of the samples that may be left out because they are missing, altered or undecodable
    (at least one sample, unless the share is 0). If there are more, the job ends with exit code 65.
    """
    max_pixels: Count = 100_000_000
    """Largest size of an image, in pixels; larger ones are bad samples."""

    @model_validator(mode="after")
    def _one_validation(self) -> "Data":
        if self.fold and self.val:
            raise ValueError("set either val or fold, which holds out a part of train instead")
        return self

    @property
    def is_validated(self) -> bool:
        """Whether there is a validation set."""
        return bool(self.val or self.fold)

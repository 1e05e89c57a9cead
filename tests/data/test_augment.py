"""Augmentation is keyed by sample, and its crops and resizes are those of torchvision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tests.support.augmenting import SIDE, picture
from worker.data.augment import Augmentation, jitter, random_box, random_resized_crop
from worker.data.epoch_plan import keyed_uniform
from worker.manifest import Augment, Jitter, RandAugment
from worker.model.backbone import preprocessing_of

PREPROCESSING = preprocessing_of("resnet18").at(SIDE)


def augmented(settings: Augment, seed: int = 0, epoch: int = 0, sample: int = 0) -> Tensor:
    out = torch.empty(3, SIDE, SIDE, dtype=torch.uint8)
    ids = np.array([77, sample])  # one of a batch
    Augmentation(PREPROCESSING, settings, seed).prepare_for(epoch)(ids)(1, picture(), out)
    return out


SETTINGS = [
    Augment(),
    Augment(randaugment=RandAugment()),
    Augment(trivialaugment=True),
    Augment(jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
    Augment(erasing=1.0),
    Augment(crop_scale=(0.5, 1.0), randaugment=RandAugment(), jitter=Jitter(hue=0.2), erasing=0.5),
]


@pytest.mark.parametrize("augment", SETTINGS)
def test_pixels_are_fixed_by_seed_epoch_and_sample(augment: Augment) -> None:
    torch.manual_seed(1)
    first = augmented(augment, 1, 2, 3)
    torch.manual_seed(2)
    assert torch.equal(first, augmented(augment, 1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(first, augmented(augment, *other))


def test_settings_do_what_they_say() -> None:
    still = Augment(crop_scale=(1.0, 1.0), flip=0.0)
    plain = augmented(still)
    assert torch.equal(augmented(still.model_copy(update={"flip": 1.0})), plain.flip(-1))
    erased = augmented(still.model_copy(update={"erasing": 1.0}))
    changed = (erased != plain).any(0)
    assert 0.01 < changed.float().mean() < 0.35
    mean = torch.tensor(PREPROCESSING.mean).mul(255).round().to(torch.uint8)
    assert (erased[:, changed] == mean[:, None]).all()
    for name in ("brightness", "contrast", "saturation", "hue"):
        other = augmented(still.model_copy(update={"jitter": Jitter(**{name: 0.5})}))
        assert not torch.equal(other, plain)


def test_colour_jitter_is_that_of_torchvision() -> None:
    image = picture(SIDE, SIDE)
    amounts = Jitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    draws = [0.3, 0.1, 0.9, 0.2, 0.7, 0.1, 0.5, 0.9]  # order 1, 3, 0, 2
    expected = v2.functional.adjust_contrast(image, 0.7 + 0.1 * 0.6)
    expected = v2.functional.adjust_hue(expected, -0.1 + 0.9 * 0.2)
    expected = v2.functional.adjust_brightness(expected, 0.6 + 0.7 * 0.8)
    expected = v2.functional.adjust_saturation(expected, 0.8 + 0.5 * 0.4)
    assert torch.equal(jitter(image, amounts, iter(draws)), expected)


def test_the_resize_is_faithful() -> None:
    """Within 0.25 of 255 on average of what Pillow makes of the same crop."""
    errors = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        smooth = picture(375, 500, seed).numpy().astype(int)
        noisy = (smooth + random.normal(0, 30, smooth.shape)).clip(0, 255).astype(np.uint8)
        image = torch.from_numpy(noisy)
        draws = keyed_uniform(41, seed, 0, np.array([0]))[0].tolist()
        top, left, h, w = random_resized_crop(500, 375, (0.08, 1.0), iter(draws))
        ours = PREPROCESSING.resized(image, (top, left, h, w), 224).permute(1, 2, 0).numpy()
        whole = Image.fromarray(image.permute(1, 2, 0).numpy())
        box = (left, top, left + w, top + h)
        theirs = whole.crop(box).resize((224, 224), Image.Resampling.BILINEAR)
        errors.append(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).mean())
    assert np.mean(errors) < 0.25


@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.integers(0, 2**32),
)
def test_crops_stay_inside(width: int, height: int, scale: list[float], key: int) -> None:
    draws = iter(keyed_uniform(40, key, 0, np.array([0]))[0].tolist())
    top, left, h, w = random_resized_crop(width, height, (scale[0], scale[1]), draws)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0
    assert next(draws, None) is None  # whatever happens, it takes as many


def test_crop_areas_are_spread_as_asked() -> None:
    areas = []
    for row in keyed_uniform(40, 0, 0, np.arange(4000)).tolist():
        box = random_box(1000, 1000, scale=(0.2, 0.6), ratios=(3 / 4, 4 / 3), draws=iter(row))
        assert box
        areas.append(box[2] * box[3] / 1e6)
    assert np.histogram(areas, bins=4, range=(0.2, 0.6))[0].tolist() == pytest.approx(
        [1000] * 4, rel=0.1
    )

"""What training sees: keyed by seed, epoch and sample, and by the laws that torchvision has."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights, Swin_T_Weights
from torchvision.transforms import v2

from worker.data.augment import Augmentation, jitter, random_box, random_resized_crop
from worker.data.augment_policies import OPERATIONS, rand_augment, trivial_augment
from worker.data.decode_image import ImageSpec, decode
from worker.data.epoch_plan import keyed_uniform
from worker.data.mixup import Blend, draw_blend, partners_of
from worker.manifest import Augment, Jitter, RandAugment
from worker.model.backbone import preprocessing_of

SIDE = 48
PREPROCESSING = preprocessing_of("resnet18").at(SIDE)


def picture(height: int = 90, width: int = 120, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    return torch.from_numpy(np.array(small.resize((width, height)))).permute(2, 0, 1)


def augmented(settings: Augment, seed: int = 0, epoch: int = 0, sample: int = 0) -> Tensor:
    out = torch.empty(3, SIDE, SIDE, dtype=torch.uint8)
    ids = np.array([77, sample])  # one of a batch
    Augmentation(PREPROCESSING, settings, seed).prepare_for(epoch)(ids)(1, picture(), out)
    return out


ALPHAS = st.just(0.0) | st.floats(0.01, 2)
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


@pytest.mark.parametrize("level", [0, 9, 30])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("policy", "theirs"),
    [(rand_augment(2, 9), v2.RandAugment), (trivial_augment(), v2.TrivialAugmentWide)],
)
def test_operations_are_those_of_torchvision(
    policy: Any, theirs: type[v2.Transform], name: str, negative: bool, level: int
) -> None:
    image = picture(SIDE, SIDE)
    transform = theirs(interpolation=v2.InterpolationMode.NEAREST)
    strengths, signed = transform._AUGMENTATION_SPACE[name]
    magnitudes = strengths(31, SIDE, SIDE)
    magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
    expected = transform._apply_image_or_video_transform(
        image,
        name,
        -magnitude if negative and signed else magnitude,
        interpolation=transform.interpolation,
        fill=transform._fill,
    )
    strength = policy.magnitude(name, level, SIDE, negative=negative)
    difference = OPERATIONS[name](image, strength).int() - expected.int()
    assert difference.abs().max() <= 1  # torchvision's magnitudes are rounded to float32


def test_every_operation_is_drawn_equally_often() -> None:
    policy = rand_augment(1, 9)
    counts = dict.fromkeys(OPERATIONS, 0)
    operations: dict[str, Callable[[Tensor, float], Tensor]] = dict(OPERATIONS)

    def counted(name: str) -> Callable[[Tensor, float], Tensor]:
        def apply(image: Tensor, _: float) -> Tensor:
            counts[name] += 1
            return image

        return apply

    with pytest.MonkeyPatch.context() as patch:
        for name in operations:
            patch.setitem(OPERATIONS, name, counted(name))
        for draws in keyed_uniform(policy.draws, 0, 0, np.arange(7000)).tolist():
            policy.apply(torch.zeros(3, 4, 4), iter(draws))
    assert sum(counts.values()) == 7000
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600


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


@pytest.mark.parametrize(
    ("name", "weights"), [("efficientnet_b0", EfficientNet_B0_Weights), ("swin_t", Swin_T_Weights)]
)
def test_evaluation_uses_the_weights_own_preset(name: str, weights: Any) -> None:
    random = np.random.default_rng(0)
    original = Image.fromarray(random.integers(0, 255, (300, 400, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    original.save(buffer, "PNG")
    ours = preprocessing_of(name)
    out = torch.empty(3, ours.crop_size, ours.crop_size, dtype=torch.uint8)
    ours.evaluated(decode(memoryview(buffer.getvalue()), ImageSpec(10**6)), out)
    theirs = weights.DEFAULT.transforms()(original)
    assert torch.allclose(ours.normalize(out[None])[0], theirs, atol=0.02)  # a level of 255


def test_a_crop_larger_than_the_resize_is_padded() -> None:
    small = preprocessing_of("resnet18").at(32)
    small = dataclasses.replace(small, crop_size=40, resize_size=32)
    out = torch.full((3, 40, 40), 7, dtype=torch.uint8)
    small.evaluated(torch.full((3, 64, 64), 200, dtype=torch.uint8), out)
    assert out[:, 4:36, 4:36].eq(200).all()
    assert out.sum() == 200 * 3 * 32 * 32


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
        box = random_box(1000, 1000, (0.2, 0.6), (3 / 4, 4 / 3), iter(row))
        assert box
        areas.append(box[2] * box[3] / 1e6)
    assert np.histogram(areas, bins=4, range=(0.2, 0.6))[0].tolist() == pytest.approx(
        [1000] * 4, rel=0.1
    )


@settings(deadline=None)
@given(ALPHAS, ALPHAS, st.integers(8, 300), st.integers(0, 9999))
def test_blends_are_keyed_and_keep_the_share(
    mixup: float, cutmix: float, side: int, step: int
) -> None:
    if not mixup and not cutmix:
        return
    blend = draw_blend(mixup, cutmix, side, 0, step)
    assert blend == draw_blend(mixup, cutmix, side, 0, step)
    assert 0 <= blend.own <= 1
    ones, zeros = torch.ones(1, 3, side, side), torch.zeros(1, 3, side, side)
    assert blend.apply(ones, zeros).mean().item() == pytest.approx(blend.own, abs=1e-5)


def test_both_blends_are_used_about_equally() -> None:
    blends = [draw_blend(0.2, 1.0, 32, 0, step) for step in range(400)]
    assert 150 < sum(blend.box is None for blend in blends) < 250
    assert all(draw_blend(0.2, 0, 32, 0, step).box is None for step in range(20))
    assert all(draw_blend(0, 1.0, 32, 0, step).box for step in range(20))
    assert len({draw_blend(1.0, 0, 32, 0, step).own for step in range(20)}) == 20


def test_a_partner_that_was_left_out_blends_nothing() -> None:
    valid = torch.tensor([False, True, True, False, True])
    assert partners_of(valid).tolist() == [1, 1, 2, 4]
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    blended = Blend(0.25, None).apply(images[1:], images[partners_of(valid)])
    assert blended[:, 0, 0, 0].tolist() == [1, 1.25, 2.25, 4]

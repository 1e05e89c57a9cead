"""Preprocessing for a backbone, applied deterministically."""

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode

from worker.data.reader import BadSample

_MAX_PIXELS = 1 << 26


@functools.cache
def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return per-channel values scaled by 255, cached on the device to avoid a sync."""
    # The cache outlives the mode of its first caller, and tensors made in inference mode cannot be
    # saved for a backward pass.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1) * 255


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing as prescribed by the preset of a backbone's weights."""

    crop_size: int
    """Side of the central crop, in pixels."""
    resize_size: int
    """Length that the shorter edge is resized to, in pixels."""
    mean: tuple[float, float, float]
    """Mean per RGB channel, on a [0, 1] scale."""
    std: tuple[float, float, float]
    """Standard deviation per RGB channel, on a [0, 1] scale."""
    interpolation: InterpolationMode
    """Interpolation mode of the resize."""
    depth: int = 16
    """Bits in use in 16-bit images that do not declare the number themselves."""

    def __str__(self) -> str:
        return (
            f"{self.resize_size} -> {self.crop_size} pixels ({self.interpolation.value}), "
            f"mean {list(self.mean)}, std {list(self.std)}, {self.depth} bits"
        )

    def at(self, size: int) -> "Preprocessing":
        """Return the same preprocessing for another crop size, with the resize in proportion."""
        resize = round(size * self.resize_size / self.crop_size)
        return dataclasses.replace(self, crop_size=size, resize_size=resize)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 [N, 3, H, W] to float32 of zero mean and unit variance.

        The result is on the images' device, in channels-last memory, which convolutions prefer.
        """
        mean, std = (_channels(values, images.device) for values in (self.mean, self.std))
        images = images.to(torch.float32, memory_format=torch.channels_last)
        # In place, since the conversion from uint8 has just made a copy.
        return images.sub_(mean).div_(std)

    def resized(self, image: Tensor, box: tuple[int, int, int, int], *size: int) -> Tensor:
        """Resize a box (top, left, height, width) of uint8 [3, H, W] to uint8 [3, h, w].

        `size` is (h, w), or the side of a square. The result is antialiased. On the CPU, it
        is computed in uint8 throughout, with a mean error of 0.04 (of 255) relative to float.
        """
        top, left, height, width = box
        part = image[None, :, top : top + height, left : left + width]
        # The kernel is fastest on channels-last memory, and returns it only if given it.
        part = part.contiguous(memory_format=torch.channels_last)
        mode = self.interpolation.value
        # Antialiasing is meaningless for nearest-neighbor interpolation, and torch rejects it.
        smooth = {"antialias": True} if mode in ("bilinear", "bicubic") else {}
        target = (size[0], size[-1])
        if not image.is_cuda:
            return interpolate(part, target, mode=mode, **smooth)[0]
        # Clamped below because bicubic interpolation overshoots at edges.
        resized = interpolate(part.float(), target, mode=mode, **smooth)[0]
        return resized.round().clamp(0, 255).to(torch.uint8)

    def evaluated(self, image: Tensor, out: Tensor) -> None:
        """Preprocess uint8 [3, H, W] for evaluation into `out`, uint8 [3, S, S].

        Resizes the shorter side and takes the central square. Raises `BadSample` for an image so
        elongated that the resized one would be too large.
        """
        height, width = image.shape[-2:]
        short = min(height, width)
        # Truncated, as torchvision's `Resize` does.
        h, w = (int(self.resize_size * side / short) for side in (height, width))
        if h * w > _MAX_PIXELS:
            raise BadSample(
                "too_large", f"{width} x {height} pixels would resize to {w} x {h}, too many"
            )
        image = self.resized(image, (0, 0, height, width), h, w)
        # A preset's crop may be larger than its resize; the missing border then stays black.
        # As in torchvision's `center_crop`, which rounds where it cuts and truncates where it pads.
        top, left = (
            round((side - self.crop_size) / 2)
            if side >= self.crop_size
            else -((self.crop_size - side) // 2)
            for side in (h, w)
        )
        image = image[:, max(0, top) :, max(0, left) :][:, : self.crop_size, : self.crop_size]
        top, left = max(0, -top), max(0, -left)
        if image.shape != out.shape:
            out.zero_()
        out[:, top : top + image.shape[1], left : left + image.shape[2]] = image

"""JPEGs decoded by nvJPEG, then cropped and augmented on the GPU.

Images that nvJPEG cannot decode as the CPU would (EXIF orientation, CMYK, other formats, broken
files) are decoded on the CPU.
"""

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from worker.data.decode_image import FAST_COLORS, ImageSpec, decode, orientation, require_bounds
from worker.data.loader import Batch, Prepare
from worker.data.reader import BadSample, Reader
from worker.errors import ConfigurationError, first_line

_END = b"\xff\xd9"


def require_nvjpeg(device: torch.device) -> None:
    """Raise `ConfigurationError` if this torchvision build or device cannot use nvJPEG."""
    picture = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), dtype=np.uint8))
    try:
        decode_jpeg([torch.frombuffer(bytearray(picture), dtype=torch.uint8)], device=device)
    except RuntimeError as error:
        reason = first_line(error)
        raise ConfigurationError(
            f"data.decoder: nvJPEG cannot be used on {device} ({reason}); set it to cpu"
        ) from None


class GpuDecoder:
    """Decoder that fills batches on a CUDA device, from one thread, on its own stream."""

    def __init__(self, device: torch.device, spec: ImageSpec) -> None:
        self.device = device
        self._spec = spec
        self._stream = torch.cuda.Stream(device)

    def fill(self, batch: Batch, reader: Reader, prepare: Prepare) -> None:
        """Read, decode and prepare every sample of a batch, and wait for the device to finish.

        Args:
            batch: The batch to fill.
            reader: The reader of the samples.
            prepare: Writes a decoded image into the batch, in the form that the model sees.
        """
        images: dict[int, memoryview] = {}
        for place, number in enumerate(batch.ids.tolist()):
            try:
                sample = reader.read(number)
                batch.labels[place] = sample.label
                images[place] = sample.image
            except BadSample as problem:
                batch.leave_out(place, problem, reader.name(number))
        with torch.cuda.stream(self._stream):
            # Allocated here, so that the allocator knows which stream writes and which one reads.
            # Zeroed, as the bad samples that `leave_out` has blanked so far are blank only in the
            # old tensor.
            out = torch.zeros_like(batch.images, device=self.device)
            out.record_stream(torch.cuda.default_stream(self.device))
            batch.images = out
            places = [place for place, image in images.items() if self._takes(image)]
            # Not strict: `_decode` returns nothing if the batch has to be decoded by the CPU.
            decoded = dict(zip(places, self._decode([images[p] for p in places]), strict=False))
            for place, image in images.items():
                try:
                    if place not in decoded:
                        decoded[place] = decode(image, self._spec).to(self.device)
                    # Popped, so that each full-size image is released once it is prepared.
                    prepare(place, decoded.pop(place), out[place])
                except BadSample as problem:
                    batch.leave_out(place, problem, reader.name(int(batch.ids[place])))
        self._stream.synchronize()

    def _takes(self, image: memoryview) -> bool:
        if (
            bytes(image[-2:]) != _END
        ):  # truncated, or with trailing bytes: left to the CPU decoder, which is strict
            return False
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(image)
        except Exception:  # whatever is wrong, the CPU decoder will report it
            return False
        try:
            require_bounds(image, width, height, self._spec.max_pixels)
        except BadSample:
            return False
        return colors in FAST_COLORS and orientation(image) == 1

    def _decode(self, images: list[memoryview]) -> list[Tensor]:
        """Return the images, uint8 [3, H, W], or none if any is broken: the CPU then finds it."""
        if not images:
            return []
        data = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
        try:
            return list(decode_jpeg(data, ImageReadMode.RGB, device=self.device))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever is wrong, the CPU decoder will report it
            if self.device.type == "cuda":
                # Images whose decoding has begun are still being written, on nvJPEG's own stream.
                torch.cuda.synchronize(self.device)
            return []

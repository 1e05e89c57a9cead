"""The GPU decoder's way through a batch, on the CPU: what it sends where, and what it leaves out."""

import contextlib
import io
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from tests.support.stores import open_reader
from worker.data import decode_on_gpu as gpu
from worker.data.decode_image import ImageSpec
from worker.data.epoch_plan import Ids
from worker.data.index_tars import index_tars
from worker.data.loader import Batch, Loader, Prepare
from worker.data.tar_source import find_tars
from worker.errors import ConfigurationError
from worker.model.backbone import preprocessing_of

PREPROCESSING = preprocessing_of("resnet18").at(24)


def evaluation(ids: Ids) -> Prepare:
    return lambda place, image, out: PREPROCESSING.evaluated(image, out)


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    y, x = np.mgrid[0:40, 0:60]
    pixels = np.stack([x * 4, y * 6, x + y], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """JPEGs plain, rotated and broken, and a PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [encoded("JPEG"), encoded("JPEG", exif=exif), encoded("PNG"), encoded("JPEG")]
    harmed = encoded("JPEG")[:-200]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, data in enumerate([*images, harmed]):
            for suffix, body in (("jpg", data), ("cls", str(number).encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    index_tars(
        find_tars(str(tmp_path)),
        None,
        "label",
        error_budget=0,
        threads=1,
        max_pixels=None,
        advance=lambda done: None,
    )
    return str(tmp_path)


def load(uri: str, decoder: gpu.GpuDecoder | None, ids: list[int]) -> Batch:
    loader = Loader(open_reader(uri), 1, ImageSpec(10**6), decoder=decoder)
    (batch,) = loader.batches([np.array(ids)], evaluation, size=24)
    loader.close()
    return batch


def test_a_build_that_cannot_is_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.require_nvjpeg(torch.device("cpu"))
    monkeypatch.setattr(gpu, "decode_jpeg", mock.Mock(side_effect=RuntimeError("not compiled")))
    with pytest.raises(ConfigurationError, match=r"data.decoder: nvJPEG .*not compiled"):
        gpu.require_nvjpeg(torch.device("cpu"))


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 1, 2, 3, 4]], ids=["sound", "one broken"])
@pytest.mark.parametrize("refuses", [False, True])
def test_it_gives_what_the_cpu_gives(
    refuses: bool, ids: list[int], mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "default_stream", mock.Mock())
    monkeypatch.setattr(torch.Tensor, "record_stream", mock.Mock())
    sent: list[int] = []

    def counted(data: list[torch.Tensor], *arguments: object, **options: object) -> object:
        sent.append(len(data))
        if refuses:
            raise RuntimeError("nvJPEG is not pleased")
        return decode_jpeg(data, *arguments, **options)

    monkeypatch.setattr(gpu, "decode_jpeg", counted)
    expected = load(mixed, None, ids)
    found = load(mixed, gpu.GpuDecoder(torch.device("cpu"), ImageSpec(10**6)), ids)
    assert sent == [2]  # not the rotated one, nor the PNG, nor the broken one
    assert torch.equal(found.valid, expected.valid)
    assert found.valid.tolist() == [True] * 4 + [False] * (len(ids) - 4)
    assert torch.equal(found.labels[found.valid], expected.labels[found.valid])
    assert [bad.id for bad in found.bad] == ids[4:]
    difference = found.images.int() - expected.images.int()
    assert difference.abs().float().mean() < 0.5


def test_a_broken_image_on_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of its batch are still being written, into memory that is about to be reused."""
    waited: list[torch.device] = []

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("nvJPEG failed")

    monkeypatch.setattr(gpu, "decode_jpeg", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    device = torch.device("cuda", 0)
    decoder = gpu.GpuDecoder(device, ImageSpec(10**6))
    assert decoder._decode([memoryview(encoded("JPEG"))]) == []
    assert waited == [device]

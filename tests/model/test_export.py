"""A finished model classifies, in every format."""

import json
from pathlib import Path

import pytest

from tests.support import sabotage
from tests.support.processes import Job, Run, Write
from tests.support.stores import contents
from worker.store import open_store


def test_a_finished_model_classifies(
    run: Run, write: Write, job: Job, pictures: Path, tmp_path: Path
) -> None:
    job["final"] = {"onnx": True, "torch_export": True}
    job["train"] = {"epochs": 4, "batch_size": 13}
    job["optimizer"]["groups"] = [{"match": "*", "lr": 3e-3}]
    assert run("train", write(job)).code == 0
    final = f"{job['output']}final/"
    images = sorted(map(str, (pictures / "val").rglob("*.*")))
    ended = run("predict", "--json", final, *images)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["image"] for row in rows] == images
    assert all(sum(row["classes"].values()) == pytest.approx(1) for row in rows)
    right = sum(max(row["classes"], key=row["classes"].get) in row["image"] for row in rows)
    reported = json.loads(open_store(final).get("model.json"))["metrics"]["accuracy"]
    assert right / len(rows) == pytest.approx(reported)
    check_exports(final, images)

    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    wrong = run("predict", final, str(text), images[0])
    assert wrong.code == 65
    assert "text.jpg: is not a JPEG, PNG or WebP image" in wrong.err
    assert wrong.out.startswith(f"{images[0]}: "), "the others are classified all the same"
    missing = run("predict", job["output"], f"{tmp_path}/gone.jpg", f"{pictures}/val")
    assert missing.code == 78
    assert "gone.jpg: no such file" in missing.err
    assert len(missing.out.splitlines()) == len(images)
    assert "https:// is not supported" in run("predict", final, "https://host/x.jpg").err
    assert "holds no images (jpg," in run("predict", final, final).err
    weights = Path(job["output"]) / "final/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    broken = run("predict", final, images[0])
    assert broken.code == 78
    assert "does not match" in broken.err
    gone = f"{tmp_path}/nothing"
    assert f"{gone}: contains no model.json, either directly or in final/" in (
        run("predict", gone, images[0]).err
    )


def check_exports(final: str, images: list[str]) -> None:
    """Both exports give what the model gives, for any number of images."""
    import io

    import onnxruntime
    import torch

    from worker.model.backbone import logits_of
    from worker.model.classifier import load_classifier

    store = open_store(final)
    model = load_classifier(final).model
    batch = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = logits_of(model(batch))[0]
    program = torch.export.load(io.BytesIO(store.get("model.pt2"))).module()
    assert torch.allclose(program(batch), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(store.get("model.onnx"))
    (logits,) = session.run(None, {"images": batch.numpy()})
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-4)


def test_an_export_without_its_package_is_refused_at_once(write: Write, job: Job, run: Run) -> None:
    job["final"] = {"onnx": True}
    ended = run("train", write(job), sabotage=sabotage.without_onnx)
    assert ended.code == 78
    assert "final.onnx: needs the package onnx; pip install onnx onnxscript" in ended.err
    assert not contents(open_store(job["output"]))

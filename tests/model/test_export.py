"""A finished model classifies, in every format."""

import json
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.support import sabotage
from tests.support.processes import Job, Run, Write
from tests.support.stores import contents
from worker.data.decode_image import ImageSpec, decode
from worker.store import open_store


def test_a_finished_model_classifies(
    run: Run, write: Write, job: Job, pictures: Path, tmp_path: Path
) -> None:
    job["final"] = {"onnx": True, "torch_export": True, "triton": True}
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
    check_repository(Path(final), tmp_path)
    check_readme(Path(final), images)

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
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.gif").write_bytes(b"GIF89a")
    (tmp_path / "more" / "b.jpg").write_bytes(Path(images[0]).read_bytes())
    mixed = run("predict", final, f"{tmp_path}/more")
    assert mixed.code == 0
    assert "left out: 1 .gif image; convert" in mixed.err
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
    classifier = load_classifier(final)
    card = classifier.card
    batch = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        expected = logits_of(classifier.model(batch))[0] / card.temperature
    program = torch.export.load(io.BytesIO(store.get("model.pt2"))).module()
    assert torch.allclose(program(batch), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(store.get("model.onnx"))
    (logits,) = session.run(None, {"images": batch.numpy()})
    assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-4)
    metadata = session.get_modelmeta()
    assert metadata.graph_name == "blue-red"
    told = metadata.custom_metadata_map
    assert json.loads(told["classes"]) == ["blue", "red"]
    assert json.loads(told["temperature"]) == card.temperature
    # What the metadata says is enough to get the same predictions as `worker predict`.
    preset = card.preprocessing
    assert json.loads(told["preprocessing"])["mean"] == list(preset.mean)
    for image in images:
        sized = torch.empty(1, 3, 32, 32, dtype=torch.uint8)
        preset.evaluated(decode(memoryview(Path(image).read_bytes()), ImageSpec(10**6)), sized[0])
        (logits,) = session.run(None, {"images": preset.normalize(sized).numpy()})
        assert card.classes[logits.argmax()] == classifier.predict(Path(image).read_bytes())[0][0]


def check_repository(final: Path, scratch: Path) -> None:
    """Triton's own schema takes the configuration, and its labels are the classes."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    folder = final / "triton" / "blue-red"
    text = (folder / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.name == folder.name
    assert [list(config.input[0].dims), list(config.output[0].dims)] == [[3, 32, 32], [2]]
    labels = folder / config.output[0].label_filename
    assert labels.read_text().split() == ["blue", "red"]
    model = onnx.load(folder / "1" / "model.onnx")
    assert model.graph.input[0].name == config.input[0].name
    assert model.graph.output[0].name == config.output[0].name
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "any number of images"


WITHOUT_WORKER = """
import sys
sys.modules["worker"] = None  # as if it were not installed
{snippet}
from PIL import Image
for path in sys.argv[1:]:
    logits = model.eval()(prepare(Image.open(path).convert("RGB"))[None]) / card["temperature"]
    print(card["classes"][logits.argmax()], logits.softmax(1).max().item())
"""


def check_readme(final: Path, images: list[str]) -> None:
    """Its snippet loads the model without this package, and gives the same probabilities."""
    readme = (final / "README.md").read_text()
    for wanted in ("# blue-red", "validation", "95% intervals", "| blue |", "temperature"):
        assert wanted in readme
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(snippet.splitlines()) <= 18
    script = WITHOUT_WORKER.format(snippet=snippet)
    ran = subprocess.run(
        [sys.executable, "-c", script, *images],
        cwd=final,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    from worker.model.classifier import load_classifier

    classifier = load_classifier(str(final))
    for image, line in zip(images, ran.stdout.splitlines(), strict=True):
        name, chance = line.split()
        best, expected = classifier.predict(Path(image).read_bytes())[0]
        assert name == best
        assert float(chance) == pytest.approx(expected, abs=0.02)


def test_an_export_without_its_package_is_refused_at_once(write: Write, job: Job, run: Run) -> None:
    job["final"] = {"onnx": True}
    ended = run("train", write(job), sabotage=sabotage.without_onnx)
    assert ended.code == 78
    assert "final.onnx: needs the package onnx; pip install onnx onnxscript" in ended.err
    assert not contents(open_store(job["output"]))

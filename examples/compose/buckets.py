"""Make the buckets, draw and pack a few hundred pictures of shapes, and put the manifest there."""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
from PIL import Image, ImageDraw

SIDE = 64
SHAPES = ("circle", "cross", "square", "triangle")
COUNTS = {"train": 96, "val": 24}  # of each shape


def draw(shape: str, draws: random.Random) -> Image.Image:
    """One shape of some color, size and place on a ground of another."""
    ground, color = (tuple(draws.randrange(256) for _ in range(3)) for _ in range(2))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    radius = draws.randrange(10, 24)
    x, y = (draws.randrange(radius, SIDE - radius) for _ in range(2))
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=color)
    elif shape == "square":
        pen.rectangle(box, fill=color)
    elif shape == "triangle":
        pen.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=color)
    else:
        pen.line((x, box[1], x, box[3]), fill=color, width=radius // 2)
        pen.line((box[0], y, box[2], y), fill=color, width=radius // 2)
    return picture


def main() -> None:
    """Do all of it, or nothing where an earlier run has."""
    s3 = boto3.client("s3")
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for bucket in {"datasets", "jobs", "models", "runs"} - there:
        s3.create_bucket(Bucket=bucket)
    if s3.list_objects_v2(Bucket="jobs")["KeyCount"]:
        return
    draws = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for split, count in COUNTS.items():
            for shape in SHAPES:
                place = Path(folder, split, shape)
                place.mkdir(parents=True)
                for number in range(count):
                    draw(shape, draws).save(place / f"{number:03d}.png")
        pack = ["worker", "pack", folder, "s3://datasets/shapes/", "--shard-size", "0.2"]
        code = subprocess.run([*pack, "--overwrite"]).returncode
    if code:
        sys.exit(code)
    manifest = Path(__file__).with_name("shapes.yaml").read_bytes()
    s3.put_object(Bucket="jobs", Key="shapes.yaml", Body=manifest)


main()

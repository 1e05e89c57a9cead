"""`worker put`."""

from pathlib import Path

from tests.support.processes import Run
from worker.store import open_store


def test_put_uploads_a_file_and_makes_the_bucket(run: Run, aws: None, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("version: 1\n")
    refused = run("put", f"{tmp_path}/job.yaml", "s3://put-bucket/jobs/")
    assert refused.code == 78
    assert "no such bucket; correct the name, or create the bucket" in refused.err
    for _ in range(2):
        ended = run("put", f"{tmp_path}/job.yaml", "s3://put-bucket/jobs/", "--create-bucket")
        assert ended.code == 0, ended.err
    assert open_store("s3://put-bucket").get("jobs/job.yaml") == b"version: 1\n"
    assert "s3://put-bucket/jobs/job.yaml: 11 bytes" in ended.out
    assert run("put", f"{tmp_path}/job.yaml", f"{tmp_path}/there/other.yaml").code == 0
    assert (tmp_path / "there" / "other.yaml").read_text() == "version: 1\n"
    misnamed = run("put", f"{tmp_path}/job.yaml", "s3://My_Bucket/", "--create-bucket")
    assert misnamed.code == 78
    assert "My_Bucket is not a valid bucket name; use 3 to 63 lowercase" in misnamed.err
    for path, complaint in ((f"{tmp_path}/gone", "no such file"), (tmp_path, "is a folder")):
        assert complaint in run("put", str(path), "s3://put-bucket/").err
    assert "FILE: is an address" in run("put", "s3://put-bucket/jobs/job.yaml", "back.yaml").err
    for address in ("s3://put-bucket", str(tmp_path)):
        assert "end it with a slash to put job.yaml there" in (
            run("put", f"{tmp_path}/job.yaml", address).err
        )

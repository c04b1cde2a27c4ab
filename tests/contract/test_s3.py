"""Import jobs over an S3-compatible endpoint: rclone's, which signs and checks as S3 does."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.blobs.buckets import S3Buckets
from gateway.domain.errors import Denied, NotFound, Unavailable
from gateway.domain.model import JobStatus
from tests.contract.embedded import Store
from tests.contract.test_bucket_imports import ended, output, start
from tests.contract.test_edits import STUDY, slice_
from tests.makers import uid


@pytest.fixture
def endpoint(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an endpoint over the folder that holds the buckets of the other tests."""
    for bucket in ("in", "out"):
        (own_store.data / "s3" / bucket).mkdir(parents=True)
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret-key")):
        monkeypatch.setenv(f"AWS_{name}", value)
    program = str(Path(sys.executable).with_name("rclone"))
    arguments = ["serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", "key,secret-key", "--vfs-cache-mode", "off"]
    with subprocess.Popen(
        [program, *arguments, "--config", "", str(own_store.data / "s3")], stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        try:
            line = next(line for line in server.stderr if "Starting s3 server" in line)
            url = re.search(r"http://[^/\]]+", line)
            assert url is not None, line
            yield url[0]
        finally:
            server.terminate()


def test_a_job_over_an_endpoint(own_store: Store, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store
    buckets = S3Buckets(endpoint, "us-east-1")
    for number in (1, 2):
        buckets.write("in", f"p/{number}.dcm", slice_(number))
    buckets.write("in", "p2/3.dcm", slice_(3))
    buckets.write("in", "p/notes.txt", b"not DICOM")
    assert [key for key, _ in buckets.list("in", "p/")] == ["p/1.dcm", "p/2.dcm", "p/notes.txt"]
    assert b"".join(buckets.read("in", "p/notes.txt")) == b"not DICOM"
    monkeypatch.setattr(store.worker.worker.importer, "buckets", buckets)
    job = ended(store, start(store))
    assert (job.status, job.message) == (JobStatus.COMPLETED, None)
    summary, lines = output(store, job)
    assert (summary["numberOfScannedFiles"], summary["numberOfImportedFiles"]) == (3, 2)
    assert [line["inputFile"] for line in lines["failure"]] == ["p/notes.txt"]
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]
    missing = ended(store, start(store, input_uri="s3://nowhere/"))
    assert missing.status is JobStatus.FAILED
    assert missing.message is not None
    assert "no bucket nowhere" in missing.message


def test_what_an_endpoint_refuses(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = S3Buckets(endpoint, "us-east-1")
    buckets.check("in")
    with pytest.raises(NotFound):
        buckets.check("nowhere")
    with pytest.raises(NotFound):
        list(buckets.read("in", "no/such/key"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Denied):
        list(S3Buckets(endpoint, "us-east-1").list("in", ""))
    with pytest.raises(Unavailable):
        S3Buckets("http://127.0.0.1:1", "us-east-1").check("in")

"""Buckets that import jobs read from and write to: folders, or an S3-compatible endpoint. Blocking, thread-safe."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapters.blobs.folder import translate
from gateway.domain.errors import Denied, InvalidInput, NotFound, Unavailable

_CHUNK = 4 << 20


class FolderBuckets:
    """`s3://bucket/key` is `root/bucket/key`. What is under the root is looked at anew each time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, bucket: str) -> None:
        """Raises NotFound where there is no such bucket."""
        if not (self._root / bucket).is_dir():
            raise NotFound(f"There is no bucket {bucket}: it would be a folder of that name in the folder of s3_root.")

    def list(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and size in bytes of the objects whose keys begin with the prefix, in order of the keys.

        Links are followed to files inside the bucket alone. Raises NotFound, Unavailable.
        """
        self.check(bucket)
        base = self._root / bucket
        folder, slash, _ = prefix.rpartition("/")
        if slash and not _is_plain(folder):
            return  # no file has such a key
        within = os.path.realpath(base) + os.sep
        yield from _walk(base / folder if slash else base, folder + slash, prefix, within)

    def read(self, bucket: str, key: str) -> Iterator[bytes]:
        """An object in pieces. Raises NotFound, Denied, Unavailable."""
        try:
            with (self._root / bucket / key).open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
        except FileNotFoundError:
            raise NotFound("The object has gone since it was listed.") from None
        except OSError as fault:
            raise _translated(fault) from fault

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """One object, whole or not at all. Raises NotFound, InvalidInput, Denied, OutOfStorage, Unavailable."""
        self.check(bucket)
        if not _is_plain(key):
            raise InvalidInput("A key with empty, . or .. parts cannot be a file.")
        path = self._root / bucket / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{path.name}.part")
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as fault:
            raise _translated(fault) from fault


def _walk(folder: Path, above: str, prefix: str, within: str) -> Iterator[tuple[str, int]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as fault:
        raise _translated(fault) from fault
    for entry in entries:
        key = above + entry.name
        if entry.is_dir(follow_symlinks=False):
            if (key + "/").startswith(prefix):
                yield from _walk(Path(entry.path), key + "/", prefix, within)
        elif key.startswith(prefix) and os.path.realpath(entry.path).startswith(within):
            with suppress(FileNotFoundError):
                if entry.is_file():
                    yield key, entry.stat().st_size


def _is_plain(key: str) -> bool:
    return all(part not in ("", ".", "..") and "\0" not in part for part in key.split("/"))


def _translated(fault: OSError) -> Exception:
    if isinstance(fault, PermissionError):
        return Denied("Access to the file is denied: the gateway's user may not read or write it.")
    if isinstance(fault, FileExistsError | IsADirectoryError | NotADirectoryError):
        return InvalidInput("A folder and a file have the same name there.")
    return translate(fault)


class S3Buckets:
    """Buckets of an S3-compatible endpoint; credentials by the usual chain of AWS SDKs."""

    def __init__(self, endpoint_url: str, region: str) -> None:
        import botocore.config
        import botocore.session

        config = botocore.config.Config(
            s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3}
        )
        self._client: Any = botocore.session.get_session().create_client(
            "s3", region_name=region, endpoint_url=endpoint_url, config=config
        )

    def check(self, bucket: str) -> None:
        """Raises NotFound, Denied, Unavailable."""
        self._call("head_bucket", bucket, Bucket=bucket)

    def list(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        """As that of `FolderBuckets`; keys that stand for folders are left out."""
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", bucket, Bucket=bucket, Prefix=prefix, **token)
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):
                    yield item["Key"], item["Size"]
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, bucket: str, key: str) -> Iterator[bytes]:
        body = self._call("get_object", bucket, Bucket=bucket, Key=key)["Body"]
        try:
            yield from body.iter_chunks(_CHUNK)
        except Exception as fault:  # botocore's, urllib3's and the socket's, all of one meaning
            raise Unavailable(f"The object could not be read to its end ({type(fault).__name__}).") from fault
        finally:
            body.close()

    def write(self, bucket: str, key: str, data: bytes) -> None:
        self._call("put_object", bucket, Bucket=bucket, Key=key, Body=data)

    def _call(self, operation: str, bucket: str, **parameters: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(**parameters)
        except ClientError as fault:
            code = str(fault.response.get("Error", {}).get("Code"))
            if code in ("NoSuchBucket", "NoSuchKey", "404", "NotFound"):
                raise NotFound(f"There is no bucket {bucket}, or its object has gone.") from None
            if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"):
                raise Denied(f"Access to the bucket {bucket} is denied.") from None
            raise Unavailable(f"The S3 endpoint answered {code}.") from None
        except BotoCoreError as fault:
            raise Unavailable(f"The S3 endpoint cannot be used ({type(fault).__name__}).") from None

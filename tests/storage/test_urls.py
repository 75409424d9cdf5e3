"""gs:// and s3:// without network access: a local server, a closed port, and the options of clients."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow.fs
import pytest

from stella_jax.readers.expand import expand
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import RowFields
from stella_jax.storage import urls
from stella_jax.storage.location import Location
from stella_jax.storage.urls import filesystem, store_errors

FIELDS = RowFields()


class Bucket(BaseHTTPRequestHandler):
    """The part of S3 that reading and listing use: a bucket `b`, and a bucket `denied` that may not be read."""

    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path)[1:].partition("/")
        if bucket != "b":
            self._answer(403 if bucket == "denied" else 404)
        elif not key:
            self._answer(200, _listing(self.objects, parse_qs(url.query)))
        elif key not in self.objects:
            self._answer(404)
        else:
            self._object(self.objects[key])

    do_HEAD = do_GET

    def _object(self, content: bytes) -> None:
        if "Range" not in self.headers:
            self._answer(200, content, {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
            return
        first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
        self._answer(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _listing(objects: dict[str, bytes], query: dict[str, list[str]]) -> bytes:
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    keys = {key: key[len(prefix) :] for key in sorted(objects) if key.startswith(prefix)}
    folders = {prefix + rest.split("/")[0] + "/" for rest in keys.values() if delimiter and "/" in rest}
    files = [key for key, rest in keys.items() if not (delimiter and "/" in rest)]
    when = "<LastModified>2026-01-01T00:00:00.123Z</LastModified>"
    content = [f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size>{when}</Contents>" for key in files]
    content += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
    return f"<ListBucketResult><KeyCount>{len(content)}</KeyCount>{''.join(content)}</ListBucketResult>".encode()


@pytest.fixture(autouse=True)
def _fresh_clients(monkeypatch) -> Iterator[None]:
    """New clients for each test, which do not look for credentials elsewhere."""
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "s", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    urls._store.cache_clear()
    yield
    urls._store.cache_clear()


@pytest.fixture
def objects(monkeypatch) -> Iterator[dict[str, bytes]]:
    """The objects in s3://b."""
    objects: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Bucket,), {"objects": objects}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield objects
    server.shutdown()
    server.server_close()
    thread.join()


def test_rows_of_a_bucket(objects):
    lines = b'{"text": "a"}\n{"text": "b"}\n'
    objects |= {"d/x y#1.jsonl": lines, "d/e/z.jsonl.gz": gzip.compress(lines), "d/e/": b"", "d/c.csv": b"text\na\n"}
    sources = open_inputs(["s3a://b/d/**"], FIELDS)
    assert [str(source.location) for source in sources] == [
        "s3://b/d/c.csv",
        "s3://b/d/e/z.jsonl.gz",
        "s3://b/d/x y#1.jsonl",
    ]
    rows = [[source.row(n, record, FIELDS) for n, record in enumerate(source.records(FIELDS), 1)] for source in sources]
    assert [[row.id for row in found if row] for found in rows] == [
        ["c.csv:1"],
        ["z.jsonl.gz:1", "z.jsonl.gz:2"],
        ["x y#1.jsonl:1", "x y#1.jsonl:2"],
    ]
    assert sources[2].size == sources[2].location.size() == len(lines)
    assert [location.name for location in expand(["s3://b/*/*.csv"])] == ["c.csv"]


@pytest.mark.parametrize("name", ["s3://b/d", "s3://b/d/", "s3://b/d/*"])
def test_a_directory_of_a_bucket(objects, name):
    objects |= {"d/a.txt": b"a", "d/b.md": b"b", "d/_job/c.txt": b"c", "d/": b"", "e/d.txt": b""}
    [found] = [location for location in expand([name]) if location.name != "b.md"]
    assert (str(found), found.listed) == ("s3://b/d/a.txt", (1, "2026-01-01T00:00:00+00:00"))
    assert found.stat() == found.listed, "listing and single request agree"


@pytest.mark.parametrize(
    "name", ["s3://b/no.txt", "s3://b/d/*.txt", "s3://nobucket/a.txt", "s3://nobucket/*.txt", "s3://b//a.txt"]
)
def test_missing_objects(objects, name, refused):
    objects["d/a.jsonl"] = b""
    with refused(name):
        expand([name])


@pytest.mark.parametrize("name", ["s3://denied/a.txt", "s3://denied/*.txt"])
def test_a_bucket_without_permission(objects, name, refused):
    with refused(f"{name}: ", mask=r"(?<=failed \().*(?=\); check)"):
        expand([name])


def test_an_object_is_read_in_ranges(objects):
    objects["a.bin"] = bytes(range(256)) * 2**15  # 8 MiB
    with Location("s3://b/a.bin").open() as file:
        assert (file.seek(5 * 2**20 + 7), file.read(3)) == (5 * 2**20 + 7, b"\7\10\11")
        assert (file.seek(-2, 2), file.read()) == (2**23 - 2, b"\xfe\xff")
        assert (file.seek(1), file.read(2)) == (1, b"\1\2")


def test_a_server_that_does_not_answer(monkeypatch, refused):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with refused("s3://bucket/a.txt: ", "connect", mask=r"(?<=failed \().*(?=\); check)"):
        expand(["s3://bucket/a.txt"])


def clients(monkeypatch, name: str) -> list[dict[str, Any]]:
    """The options of clients of this class."""
    made: list[dict[str, Any]] = []

    def client(**options: Any) -> pyarrow.fs.FileSystem:
        made.append(options)
        return pyarrow.fs.LocalFileSystem()

    monkeypatch.setattr(pyarrow.fs, name, client)
    return made


def test_timeouts(monkeypatch):
    gs, s3 = clients(monkeypatch, "GcsFileSystem"), clients(monkeypatch, "S3FileSystem")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    assert filesystem("gs://b/k")[1] == filesystem("s3://b/k/")[1] == "b/k"
    assert gs[0].keys() == {"retry_time_limit"}
    assert gs[0]["retry_time_limit"].total_seconds() <= 30
    assert s3[0]["connect_timeout"] <= 10 and s3[0]["request_timeout"] <= 30 and s3[0]["region"] == "eu-north-1"


def test_the_region_of_a_bucket_is_looked_up_once(monkeypatch):
    made, asked = clients(monkeypatch, "S3FileSystem"), []
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pyarrow.fs, "resolve_s3_region", lambda bucket: asked.append(bucket) or "eu-west-1")
    for key in ("k", "l"):
        filesystem(f"s3://bucket/{key}")
    assert (asked, [options["region"] for options in made]) == (["bucket"], ["eu-west-1"])


def test_custom_endpoints(monkeypatch):
    gs, s3 = clients(monkeypatch, "GcsFileSystem"), clients(monkeypatch, "S3FileSystem")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000/")
    for url in ("gs://b", "s3://b"):
        filesystem(url)
    assert (gs[0]["endpoint_override"], gs[0]["scheme"], gs[0]["anonymous"]) == ("localhost:4443", "http", True)
    assert (s3[0]["endpoint_override"], s3[0]["scheme"]) == ("minio:9000", "http")


def test_long_reasons_are_cut(refused):
    with refused("gs://b/k"), store_errors("gs://b/k"):
        raise OSError("x" * 5000 + "\nand more")

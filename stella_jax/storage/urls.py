"""URLs: the file system that one lies in, and what goes wrong there in sentences."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import FileInfo, FileSelector, FileType

from stella_jax.errors import StellaError, first_line
from stella_jax.storage.patterns import is_pattern

# Read by pyarrow, so that the packages that fsspec wants for them are not needed. Other spellings, and the usual one:
STORES = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3"}

# Bounds on a store that does not answer; without the last, Google's client tries for 15 minutes.
CONNECT_SECONDS = 5
REQUEST_SECONDS = 30
RETRY_SECONDS = 30
# Of an error of a store's client: some quote whole answers of a server.
LONGEST_REASON = 300


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system that a URL (a file's or a folder's) lies in, and the path there.

    gs:// and s3:// take their credentials as Google's and Amazon's own tools do: from the environment, from files in
    the home directory, or from the machine. They have no folders: making one does nothing. Whatever the file system
    raises later becomes a sentence in `told`.

    Raises:
      StellaError: there is no such kind of URL, a package for it is missing, or the store cannot be reached.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in STORES:
        if not is_known(scheme):
            raise StellaError(
                f"{url}: {scheme}:// URLs are not supported; supported: gs://, s3:// and what fsspec has a package for."
            )
        with told(url):
            return url_to_fs(url)
    bucket = rest.partition("/")[0]
    if not bucket or is_pattern(bucket):
        raise StellaError(f"{url} names no bucket.")
    with told(url):
        return _store(STORES[scheme], bucket), rest.rstrip("/")


def is_known(scheme: str) -> bool:
    """Whether this is a kind of URL, if perhaps one for which a package is missing."""
    try:
        get_filesystem_class(scheme)
    except ImportError:
        return True
    except ValueError:
        return scheme in STORES
    return True


@contextmanager
def told(url: str) -> Iterator[None]:
    """Makes one sentence with the URL of whatever a file system raises in this block.

    Raises:
      StellaError: in place of any other error.
    """
    try:
        yield
    except (StellaError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise StellaError(f"{url} does not exist.") from error
    except ImportError as error:
        raise StellaError(f"{url} needs a package that is not installed: {error}.") from error
    except Exception as error:  # each kind of file system has its own
        raise StellaError(f"{url} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    line = first_line(error).rstrip(".")
    return f"{line}." if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}..."


class ObjectStore(ArrowFSWrapper):
    """gs:// or s3://; without folders, of which a store would keep empty objects.

    `ls` of gs:// lists the files of a folder and leaves out the folders.
    """

    def files(self, folder: str, deep: bool) -> list[dict[str, Any]]:
        """`info` of the files in a folder, or `deep` of all below it; none where there is no such folder."""
        found = self.fs.get_file_info(FileSelector(folder, allow_not_found=True, recursive=deep))
        return [self._make_entry(info) for info in found if info.type == FileType.File]

    def _make_entry(self, info: FileInfo) -> dict[str, Any]:
        entry = super()._make_entry(info)
        # A listing may tell milliseconds, the answer about one object does not.
        if entry["mtime"] and self.fs.type_name == "s3":
            entry["mtime"] = entry["mtime"].replace(microsecond=0)
        return entry

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass


@cache  # a client looks up credentials and holds connections
def _store(scheme: str, bucket: str) -> AbstractFileSystem:
    from pyarrow.fs import GcsFileSystem, S3FileSystem  # here: a pyarrow may be built without them

    if scheme == "gs":
        return ObjectStore(GcsFileSystem(retry_time_limit=timedelta(seconds=RETRY_SECONDS), **_gs_server()))
    bounds = {"connect_timeout": CONNECT_SECONDS, "request_timeout": REQUEST_SECONDS}
    # Delayed, what is small is written by one request in place of three.
    return ObjectStore(S3FileSystem(allow_delayed_open=True, **bounds, **_s3_server(bucket)))


def _gs_server() -> dict[str, Any]:
    """Where buckets are served, if not by Google; by the variable that Google's own clients read."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    return {"anonymous": True, **_endpoint(emulator, "http")} if emulator else {}


def _s3_server(bucket: str) -> dict[str, Any]:
    """Where a bucket is served, by the variables that Amazon's tools read; pyarrow reads few of them itself."""
    from pyarrow.fs import resolve_s3_region

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return _endpoint(endpoint, "https")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return {"region": region or resolve_s3_region(bucket)}


def _endpoint(url: str, scheme: str) -> dict[str, str]:
    """A server in pyarrow's words; `scheme` is used where the URL has none."""
    given, _, server = url.rpartition("://")
    return {"endpoint_override": server.rstrip("/"), "scheme": given or scheme}

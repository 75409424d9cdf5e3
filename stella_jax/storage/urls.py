"""The file systems behind URLs, and their errors as sentences."""

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

# Schemes that pyarrow reads, without the packages that fsspec needs for them, and their canonical spelling.
STORES = {"gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3"}

# Timeouts for a store that does not answer. Google's client would retry for 15 minutes.
CONNECT_SECONDS = 5
REQUEST_SECONDS = 30
RETRY_SECONDS = 30
# Characters of a client's error; some quote a server's whole response.
MAX_REASON = 300


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of a URL (of a file or a folder), and the path in it.

    gs:// and s3:// find their credentials as Google's and Amazon's own tools do: in the environment, in files of the
    home directory, or from the machine. They have no folders: making one does nothing. Calls of the file system belong
    inside `store_errors`.

    Raises:
      StellaError: the scheme is not supported, a package for it is missing, or the store cannot be reached.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in STORES:
        if not is_known(scheme):
            raise StellaError(
                f"{url}: {scheme}:// URLs are not supported; supported: gs://, s3:// and all that fsspec can open."
            )
        with store_errors(url):
            return url_to_fs(url)
    bucket = rest.partition("/")[0]
    if not bucket or is_pattern(bucket):
        raise StellaError(f"{url}: missing bucket name.")
    with store_errors(url):
        return _store(STORES[scheme], bucket), rest.rstrip("/")


def is_known(scheme: str) -> bool:
    """Whether a URL scheme exists, even if the package for it is not installed."""
    try:
        get_filesystem_class(scheme)
    except ImportError:
        return True
    except ValueError:
        return scheme in STORES
    return True


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """A block in which any error of a file system becomes a StellaError that names the URL."""
    try:
        yield
    except (StellaError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise StellaError(f"{url}: file not found.") from error
    except ImportError as error:
        raise StellaError(f"{url}: a package that these URLs need is not installed; {error}.") from error
    except Exception as error:  # every file system has its own
        why = f"request failed ({_reason(error)})"
        raise StellaError(f"{url}: {why}; check the URL, the network and your credentials.") from error


def _reason(error: Exception) -> str:
    line = first_line(error)
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}..."


class ObjectStoreFileSystem(ArrowFSWrapper):
    """gs:// or s3://. It makes no folders: a store would keep them as empty objects.

    `ls` of gs:// lists the files of a folder, but not the folders in it.
    """

    def files(self, folder: str, deep: bool) -> list[dict[str, Any]]:
        """`info` of the files in a folder, or with `deep` of all below it; none if there is no such folder."""
        found = self.fs.get_file_info(FileSelector(folder, allow_not_found=True, recursive=deep))
        return [self._make_entry(info) for info in found if info.type == FileType.File]

    def _make_entry(self, info: FileInfo) -> dict[str, Any]:
        entry = super()._make_entry(info)
        # A listing may report milliseconds; a request for one object does not.
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
        return ObjectStoreFileSystem(GcsFileSystem(retry_time_limit=timedelta(seconds=RETRY_SECONDS), **_gs_server()))
    bounds = {"connect_timeout": CONNECT_SECONDS, "request_timeout": REQUEST_SECONDS}
    # With a delayed open, a small object is written by one request instead of three.
    return ObjectStoreFileSystem(S3FileSystem(allow_delayed_open=True, **bounds, **_s3_server(bucket)))


def _gs_server() -> dict[str, Any]:
    """The endpoint, if it is not Google's, from the variable that Google's clients read."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    return {"anonymous": True, **_endpoint(emulator, "http")} if emulator else {}


def _s3_server(bucket: str) -> dict[str, Any]:
    """The endpoint or region of a bucket, from the variables that Amazon's tools read; pyarrow reads few of them."""
    from pyarrow.fs import resolve_s3_region

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return _endpoint(endpoint, "https")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return {"region": region or resolve_s3_region(bucket)}


def _endpoint(url: str, scheme: str) -> dict[str, str]:
    """pyarrow's options for an endpoint; `scheme` is the default for a URL without one."""
    given, _, server = url.rpartition("://")
    return {"endpoint_override": server.rstrip("/"), "scheme": given or scheme}

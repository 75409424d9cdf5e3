"""Inputs as users name them: odd paths, patterns, URLs, and what is wrong with each in one sentence."""

import gzip
import os
import pickle
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax import StellaError
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import Fields
from stella_jax.storage import location, urls
from stella_jax.storage.location import Location, expand, locate

FIELDS = Fields()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The file system of memory:// URLs, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*inputs: str) -> list[str]:
    return [str(location) for location in expand(inputs)]


def refused(*inputs: str) -> str:
    with pytest.raises(StellaError) as error:
        [list(source.records(FIELDS)) for source in open_inputs(inputs, FIELDS)]
    assert "\n" not in str(error.value)
    return str(error.value)


# Locations


def test_a_path_is_a_location(here):
    Path("a.txt").write_bytes(b"text")
    found = locate("a.txt")
    assert (str(found), found.name, found.full) == ("a.txt", "a.txt", str(here.resolve() / "a.txt"))
    assert (found.parts[-2:], found.kind(), found.size()) == ((here.name, "a.txt"), "file", 4)
    with found.open() as file:
        assert (file.peek(1)[:1], file.read(), file.seekable()) == (b"t", b"text", True)


def test_a_url_is_a_location(memory):
    memory.pipe("/d/a.txt", b"text")
    found = locate("memory://d/a.txt")
    assert (str(found), found.name, found.full) == ("memory://d/a.txt", "a.txt", "memory://d/a.txt")
    assert ("/".join(found.parts), found.kind(), found.size()) == ("memory://d/a.txt", "file", 4)
    with found.open() as file:
        assert (file.peek(1)[:1], file.read(), file.seek(-3, os.SEEK_END), file.read()) == (b"t", b"text", 1, b"ext")


@pytest.mark.parametrize("name", ["memory://d/a.txt", "a.txt"])
def test_a_location_comes_again_from_what_is_kept_of_it(here, name):
    touch("a.txt")
    kept = locate(name).full
    assert Location(kept).full == kept
    assert pickle.loads(pickle.dumps(Location(kept))) == Location(kept)


def test_a_url_is_read_block_by_block_from_anywhere(memory):
    memory.pipe("/a.bin", bytes(range(256)))
    location = Location("memory://a.bin", block=16)
    with location.open() as one, location.open() as other:
        assert (one.read(100), other.read(20)) == (bytes(range(100)), bytes(range(20)))
        assert (one.read(), one.tell()) == (bytes(range(100, 256)), 256)
        assert (other.seek(250), other.read(), other.read()) == (250, bytes(range(250, 256)), b"")


def test_odd_paths_are_paths(here):
    names = ["a:b.txt", "c:/x.txt", "foo://x.txt", "c://x.txt", "gs:x.txt", " .txt", "-.txt", "ä\n.txt", "%41.txt"]
    for name in names:
        touch(name)
        assert [location.is_url for location in expand([name])] == [False]
        assert open_inputs([name], FIELDS)[0].name == Path(name).name
    touch("s3:/bucket/x.txt")
    assert not locate(Path("s3://bucket/x.txt")).is_url
    assert locate("./s3://bucket/x.txt").kind() == "file"


def test_spellings_of_one_url(here, memory):
    memory.pipe("/a.txt", b"")
    assert found("MEMORY://a.txt") == ["memory://a.txt"]
    assert [str(locate(url)) for url in ("S3A://b/k", "gcs://b/k")] == ["s3://b/k", "gs://b/k"]
    touch("b.txt")
    assert found(f"file://{here}/b.txt") == [f"{here}/b.txt"]


def test_names_that_are_no_utf8_are_refused(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4d.txt")
    try:
        Path(path).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for name in (path, f"{tmp_path}/*.txt"):
        assert "the name is not UTF-8; rename the file." in refused(name)


def test_names_tell_urls_and_paths_apart(here, memory):
    touch("x/a.txt")
    memory.pipe({"/x/a.txt": b"", "/y/a.txt": b"", "/b.txt": b""})
    inputs = ["x/a.txt", "memory://x/a.txt", "memory://y/a.txt", "memory://b.txt"]
    names = [source.name for source in open_inputs(inputs, FIELDS)]
    assert names == [f"{here.name}/x/a.txt", "/x/a.txt", "y/a.txt", "b.txt"]


# Patterns

TREE = ["a.txt", "b.txt", "B.txt", "d/a.txt", "d/c.csv", "d/e/a.txt", "d/.h/a.txt", "d/.a.txt", "é.txt", "d-/a.txt"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["B.txt", "a.txt", "b.txt", "é.txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("[!a-z].txt", ["B.txt", "é.txt"]),
        ("?.txt", ["B.txt", "a.txt", "b.txt", "é.txt"]),
        ("d/*", ["d/a.txt", "d/c.csv"]),
        ("d*/a.txt", ["d-/a.txt", "d/a.txt"]),
        ("*/*/*.txt", ["d/e/a.txt"]),
        ("**/a.txt", ["a.txt", "d-/a.txt", "d/a.txt", "d/e/a.txt"]),
        ("d/**", ["d/a.txt", "d/c.csv", "d/e/a.txt"]),
        ("**/**/e/*", ["d/e/a.txt"]),
        ("d/.*", ["d/.a.txt"]),
        ("d/.h/*", ["d/.h/a.txt"]),
        ("d**/*.csv", ["d/c.csv"]),
    ],
)
@pytest.mark.parametrize("root", ["", "/", "memory://", "memory://r/"])
def test_patterns(here, memory, root, pattern, names):
    root = f"{here}/" if root == "/" else root
    if "memory" in root:
        memory.pipe({f"/{root[9:]}{name}": b"" for name in TREE})
    else:
        touch(*TREE)
    assert found(root + pattern) == [root + name for name in names]


def test_each_pattern_in_its_place(here):
    touch(*TREE)
    assert found("d/*.csv", "é.txt", "[ab].txt") == ["d/c.csv", "é.txt", "a.txt", "b.txt"]


def test_a_file_named_like_a_pattern_is_that_file(here, memory):
    touch("[ab].txt", "a.txt", "*.txt")
    memory.pipe({"/[ab].txt": b"", "/a.txt": b""})
    assert found("[ab].txt", "memory://[ab].txt") == ["[ab].txt", "memory://[ab].txt"]
    assert found("*.txt") == ["*.txt"]
    assert found("[*].txt", "[[]ab].txt") == ["*.txt", "[ab].txt"]


def test_links_are_not_followed_round_in_circles(here):
    touch("d/a.txt")
    Path("d/up").symlink_to(here)
    Path("l").symlink_to("d")
    assert found("**/a.txt") == ["d/a.txt"]
    assert found("l/*.txt") == ["l/a.txt"]


def test_an_overlap_is_an_error(here, memory):
    touch("a.txt", "b.txt")
    memory.pipe("/a.txt", b"")
    for inputs in (["a.txt", "*.txt"], ["*.txt", "[a].*"], ["a.txt", "./a.txt"]):
        assert refused(*inputs) == "a.txt is given twice."
    assert refused("memory://*.txt", "memory://a.txt") == "memory://a.txt is given twice."
    assert refused(f"file://{here}/b.txt", "b.txt") == f"{here}/b.txt is given twice."


@pytest.mark.parametrize("pattern", ["*.csv", "no/*", "a.txt/*", "memory://*.csv", "memory://no/*", "memory://a.txt/*"])
def test_a_pattern_without_matches(here, memory, pattern):
    touch("a.txt")
    memory.pipe("/a.txt", b"")
    assert refused(pattern) == f"{pattern} matches no file."


# Directories

INSIDE = ["d/b.jsonl", "d/a.TXT", "d/e/c.csv.gz", "d/e/f.txt.zst", "d-/x.parquet"]
OUTSIDE = ["d/notes.md", "d/.a.txt", "d/_SUCCESS", "d/_job/a.jsonl", "d/.h/a.txt", "d/e/_a.txt"]


@pytest.mark.parametrize("name", ["d", "d/", "./d", "{here}/d", "memory://d", "memory://d/"])
def test_a_directory_is_the_files_below_it(here, memory, name):
    name = name.format(here=here)
    touch(*INSIDE, *OUTSIDE)
    memory.pipe({f"/{path}": b"" for path in [*INSIDE, *OUTSIDE]})
    top = name if "memory" in name else str(Path(name))
    below = ["a.TXT", "b.jsonl", "e/c.csv.gz", "e/f.txt.zst"]
    assert found(name) == [f"{top.rstrip('/')}/{path}" for path in below]


def test_the_working_directory_and_one_named_like_a_pattern(here, memory):
    touch("a.txt", "d[1]/a.txt", "d1/b.txt")
    memory.pipe({"/d[1]/a.txt": b"", "/d1/b.txt": b""})
    assert found(".") == ["a.txt", "d1/b.txt", "d[1]/a.txt"]
    assert found("d[1]", "memory://d[1]") == ["d[1]/a.txt", "memory://d[1]/a.txt"]


def test_a_link_to_a_directory_is_followed_where_it_is_named(here):
    touch("d/a.txt", "x/b.txt")
    Path("d/l").symlink_to(here / "x")
    Path("k").symlink_to("d")
    assert found("d") == ["d/a.txt"]
    assert found("k") == ["k/a.txt"]
    assert refused("d", "k/a.txt") == "d/a.txt is given twice."


@pytest.mark.parametrize("name", ["d", "memory://d"])
def test_a_directory_without_inputs(here, memory, name):
    touch(*OUTSIDE)
    memory.pipe({f"/{path}": b"" for path in OUTSIDE})
    assert refused(name).startswith(f"{name}: the directory holds no file of a supported type; supported: .jsonl,")


# Size and version


def test_a_file_that_changes_has_another_version(here, memory):
    for name in ("a.txt", "memory://a.txt"):
        memory.pipe("/a.txt", b"one")
        Path("a.txt").write_bytes(b"one")
        [seen] = expand([name])
        assert seen.listed == seen.stat() == (3, seen.version())
        assert seen.version() != ""
        memory.pipe("/a.txt", b"two")
        Path("a.txt").write_bytes(b"two")
        os.utime("a.txt", ns=(1, 2))
        assert seen.size() == 3
        assert seen.stat() != seen.listed
        assert expand([name])[0].listed == seen.stat()
    assert Location("a.txt").version() == "2"


def test_what_tells_versions_apart_behind_urls(memory, monkeypatch):
    memory.pipe("/a.txt", b"")
    seen = {"name": "/a.txt", "type": "file", "size": 5}
    for extra, version in (
        ({}, ""),
        ({"mtime": datetime(2026, 1, 2, tzinfo=UTC)}, "2026-01-02T00:00:00+00:00"),
        ({"ETag": '"x"', "mtime": 3.5}, '"x"'),
        ({"generation": 17, "updated": "now"}, "17"),
        ({"etag": None, "mtime": 3.5}, "3.5"),
    ):
        monkeypatch.setattr(memory, "info", lambda path, extra=extra: seen | extra)
        assert Location("memory://a.txt").stat() == (5, version)


def test_a_large_listing_looks_at_each_file_once(here, monkeypatch):
    touch(*(f"d/{i}.txt" for i in range(50)))
    Path("d/l.txt").symlink_to(here / "x.txt")
    touch("x.txt")
    seen = []
    with monkeypatch.context() as patched:
        for name in ("stat", "lstat"):
            look = getattr(os, name)
            patched.setattr(os, name, lambda path, look=look, **more: (seen.append(str(path)), look(path, **more))[1])
        found = expand(["d"])
    counts = Counter(path for path in seen if path.startswith("d/") and "l.txt" not in path)
    assert set(counts.values()) == {1}
    assert [each.listed for each in found] == [each.stat() for each in found]
    assert [each.full for each in found] == [Location(each.given).full for each in found]


# What cannot be read


@pytest.mark.parametrize("name", ["d/p.txt", "d/*.txt", "d", "/dev/null", "s.txt"])
def test_a_pipe_a_socket_and_a_device_are_not_waited_for(here, name):
    touch("d/a.txt")
    os.mkfifo("d/p.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.txt")
        shown = name if name in ("/dev/null", "s.txt") else "d/p.txt"
        assert refused(name).startswith(f"{shown}: not a regular file; ")
        with pytest.raises(StellaError, match="not a regular file"):
            Location(shown).open()
    assert (Location("d/p.txt").kind(), Location("d").kind()) == ("special", "directory")


@pytest.mark.parametrize("name", ["a.txt", "memory://a.txt", "memory://no/a.txt"])
def test_a_file_that_is_not_there(here, memory, name):
    assert refused(name) == f"{name} does not exist."


def test_kinds_of_urls_that_cannot_be_read(monkeypatch):
    assert refused("foo://x/a.txt").startswith("foo://x/a.txt: foo:// URLs are not supported")
    assert refused("s3:///a.txt") == "s3:///a.txt names no bucket."
    assert refused("gs://*/a.txt") == "gs://*/a.txt names no bucket."

    def missing(url: str) -> None:
        raise ImportError("Install that")

    monkeypatch.setattr(urls, "url_to_fs", missing)
    assert refused("sftp://h/a.txt") == "sftp://h/a.txt needs a package that is not installed: Install that."


def test_an_object_that_vanishes_or_cannot_be_read(memory, monkeypatch):
    memory.pipe({"/a.txt": b"a\n", "/b.txt": b"b\n"})
    first, second = open_inputs(["memory://*.txt"], FIELDS)
    memory.rm("/a.txt")
    with pytest.raises(StellaError, match=r"^memory://a.txt does not exist\.$"):
        next(first.records(FIELDS))
    with pytest.raises(StellaError, match=r"^memory://a.txt does not exist\.$"):
        list(first.records(FIELDS))

    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError("no such right\nand more")

    monkeypatch.setattr(memory, "_open", denied)
    with pytest.raises(StellaError, match=r"^memory://b.txt cannot be used: no such right\.$"):
        next(second.records(FIELDS))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_a_connection_that_breaks(memory, monkeypatch, tmp_path, name):
    pq.write_table(pa.table({"text": [f"{i:0200}" for i in range(1000)]}), tmp_path / "a.parquet")
    lines = b'"text"\n' + b"".join(b"%0200d\n" % (i**99) for i in range(1000))
    content = (tmp_path / name).read_bytes() if "parquet" in name else gzip.compress(lines) if "gz" in name else lines
    memory.pipe(f"/{name}", content)
    [source] = open_inputs([f"memory://{name}"], FIELDS)
    source = replace(source, location=replace(source.location, block=2**12))
    reads = iter([None] * 3)
    read = location._Remote._read

    def breaking(self: location._Remote, size: int) -> bytes:
        if next(reads, "broken"):
            raise TimeoutError("no answer.")
        return read(self, size)

    monkeypatch.setattr(location._Remote, "_read", breaking)
    with pytest.raises(StellaError, match=rf"^memory://{name} cannot be used: no answer\.$"):
        list(source.records(FIELDS))


def test_objects_that_are_cut_off(memory, tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "a.parquet")
    whole = {"a.parquet": (tmp_path / "a.parquet").read_bytes(), "a.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 1000)}
    for name, content in whole.items():
        memory.pipe(f"/{name}", content[:-20])
    assert refused("memory://a.parquet").startswith("memory://a.parquet is not a valid Parquet file: ")
    assert refused("memory://a.jsonl.gz").startswith("memory://a.jsonl.gz is cut off after row ")
    memory.pipe("/a.jsonl.gz", b"{}")
    assert refused("memory://a.jsonl.gz").startswith("memory://a.jsonl.gz is not a valid gzip file: ")

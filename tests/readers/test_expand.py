"""Inputs as users name them: unusual paths, URLs, patterns, directories, and what is refused."""

import os
import socket
from collections import Counter
from pathlib import Path

import pytest
from reading import FIELDS

from stella_jax.readers.expand import expand
from stella_jax.readers.inputs import open_inputs
from stella_jax.storage import urls
from stella_jax.storage.location import Location, locate

TREE = ["a.txt", "b.txt", "B.txt", "d/a.txt", "d/c.csv", "d/e/a.txt", "d/.h/a.txt", "d/.a.txt", "é.txt", "d-/a.txt"]
INSIDE = ["d/b.jsonl", "d/a.TXT", "d/e/c.csv.gz", "d/e/f.txt.zst", "d-/x.parquet"]
OUTSIDE = ["d/notes.md", "d/.a.txt", "d/_SUCCESS", "d/_job/a.jsonl", "d/.h/a.txt", "d/e/_a.txt"]


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*inputs: str) -> list[str]:
    return [str(location) for location in expand(inputs)]


# Names


def test_unusual_paths(here):
    names = ["a:b.txt", "c:/x.txt", "foo://x.txt", "c://x.txt", "gs:x.txt", " .txt", "-.txt", "ä\n.txt", "%41.txt"]
    for name in names:
        touch(name)
        assert [location.is_url for location in expand([name])] == [False]
        assert open_inputs([name], FIELDS)[0].name == Path(name).name
    touch("s3:/bucket/x.txt")
    assert not locate(Path("s3://bucket/x.txt")).is_url
    assert locate("./s3://bucket/x.txt").kind() == "file"


def test_spellings_of_a_url(here, memory):
    memory.pipe("/a.txt", b"")
    assert found("MEMORY://a.txt") == ["memory://a.txt"]
    assert [str(locate(url)) for url in ("S3A://b/k", "gcs://b/k")] == ["s3://b/k", "gs://b/k"]
    touch("b.txt")
    assert found(f"file://{here}/b.txt") == [f"{here}/b.txt"]


def test_names_that_are_not_utf8(tmp_path, refused):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4d.txt")
    try:
        Path(path).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for name in (path, f"{tmp_path}/*.txt"):
        with refused(r"b\udce4d.txt"):
            open_inputs([name], FIELDS)


def test_urls_and_paths_have_different_names(here, memory):
    touch("x/a.txt")
    memory.pipe({"/x/a.txt": b"", "/y/a.txt": b"", "/b.txt": b""})
    inputs = ["x/a.txt", "memory://x/a.txt", "memory://y/a.txt", "memory://b.txt"]
    names = [source.name for source in open_inputs(inputs, FIELDS)]
    assert names == [f"{here.name}/x/a.txt", "/x/a.txt", "y/a.txt", "b.txt"]


# Patterns


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


def test_the_order_of_several_patterns(here):
    touch(*TREE)
    assert found("d/*.csv", "é.txt", "[ab].txt") == ["d/c.csv", "é.txt", "a.txt", "b.txt"]


def test_a_file_named_like_a_pattern(here, memory):
    touch("[ab].txt", "a.txt", "*.txt")
    memory.pipe({"/[ab].txt": b"", "/a.txt": b""})
    assert found("[ab].txt", "memory://[ab].txt") == ["[ab].txt", "memory://[ab].txt"]
    assert found("*.txt") == ["*.txt"]
    assert found("[*].txt", "[[]ab].txt") == ["*.txt", "[ab].txt"]


def test_circular_links_are_not_followed(here):
    touch("d/a.txt")
    Path("d/up").symlink_to(here)
    Path("l").symlink_to("d")
    assert found("**/a.txt") == ["d/a.txt"]
    assert found("l/*.txt") == ["l/a.txt"]


@pytest.mark.parametrize(
    "inputs", [("a.txt", "*.txt"), ("*.txt", "[a].*"), ("a.txt", "./a.txt"), ("memory://*.txt", "memory://a.txt")]
)
def test_an_input_that_is_given_twice(here, memory, inputs, refused):
    touch("a.txt", "b.txt")
    memory.pipe("/a.txt", b"")
    with refused("a.txt"):
        expand(inputs)


def test_a_file_url_and_its_path(here, refused):
    touch("b.txt")
    with refused("b.txt"):
        expand([f"file://{here}/b.txt", "b.txt"])


@pytest.mark.parametrize("pattern", ["*.csv", "no/*", "a.txt/*", "memory://*.csv", "memory://no/*", "memory://a.txt/*"])
def test_a_pattern_without_matches(here, memory, pattern, refused):
    touch("a.txt")
    memory.pipe("/a.txt", b"")
    with refused(pattern):
        expand([pattern])


# Directories


@pytest.mark.parametrize("name", ["d", "d/", "./d", "{here}/d", "memory://d", "memory://d/"])
def test_a_directory_stands_for_the_files_below_it(here, memory, name):
    name = name.format(here=here)
    touch(*INSIDE, *OUTSIDE)
    memory.pipe({f"/{path}": b"" for path in [*INSIDE, *OUTSIDE]})
    top = name if "memory" in name else str(Path(name))
    below = ["a.TXT", "b.jsonl", "e/c.csv.gz", "e/f.txt.zst"]
    assert found(name) == [f"{top.rstrip('/')}/{path}" for path in below]


def test_the_working_directory_and_a_directory_named_like_a_pattern(here, memory):
    touch("a.txt", "d[1]/a.txt", "d1/b.txt")
    memory.pipe({"/d[1]/a.txt": b"", "/d1/b.txt": b""})
    assert found(".") == ["a.txt", "d1/b.txt", "d[1]/a.txt"]
    assert found("d[1]", "memory://d[1]") == ["d[1]/a.txt", "memory://d[1]/a.txt"]


def test_a_link_to_a_directory_is_followed_if_it_is_named(here, refused):
    touch("d/a.txt", "x/b.txt")
    Path("d/l").symlink_to(here / "x")
    Path("k").symlink_to("d")
    assert found("d") == ["d/a.txt"]
    assert found("k") == ["k/a.txt"]
    with refused("d/a.txt"):
        expand(["d", "k/a.txt"])


@pytest.mark.parametrize("name", ["d", "memory://d"])
def test_a_directory_without_inputs_below_it(here, memory, name, refused):
    touch(*OUTSIDE)
    memory.pipe({f"/{path}": b"" for path in OUTSIDE})
    with refused(name, ".jsonl"):
        expand([name])


# Size and version


def test_a_changed_file_has_a_different_version(here, memory):
    for name in ("a.txt", "memory://a.txt"):
        memory.pipe("/a.txt", b"one")
        Path("a.txt").write_bytes(b"one")
        [seen] = expand([name])
        assert seen.listed == seen.stat() == (3, seen.stat().version)
        assert seen.stat().version != ""
        memory.pipe("/a.txt", b"two")
        Path("a.txt").write_bytes(b"two")
        os.utime("a.txt", ns=(1, 2))
        assert seen.size() == 3
        assert seen.stat() != seen.listed
        assert expand([name])[0].listed == seen.stat()
    assert Location("a.txt").stat().version == "2"


def test_each_listed_file_is_looked_up_once(here, monkeypatch):
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


# Files that cannot be read


@pytest.mark.parametrize("name", ["d/p.txt", "d/*.txt", "d", "/dev/null", "s.txt"])
def test_pipes_sockets_and_devices(here, name, refused):
    touch("d/a.txt")
    os.mkfifo("d/p.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.txt")
        shown = name if name in ("/dev/null", "s.txt") else "d/p.txt"
        with refused(shown):
            expand([name])
        with refused(shown):
            Location(shown).open()
    assert (Location("d/p.txt").kind(), Location("d").kind()) == ("special", "directory")


@pytest.mark.parametrize("name", ["a.txt", "memory://a.txt", "memory://no/a.txt"])
def test_a_missing_input(here, memory, name, refused):
    with refused(name):
        expand([name])


@pytest.mark.parametrize("url", ["foo://x/a.txt", "s3:///a.txt", "gs://*/a.txt"])
def test_invalid_urls(url, refused):
    with refused(url):
        expand([url])


def test_a_url_whose_package_is_not_installed(monkeypatch, refused):
    def missing(url: str) -> None:
        raise ImportError("Install that")

    monkeypatch.setattr(urls, "url_to_fs", missing)
    with refused("sftp://h/a.txt", "Install that"):
        expand(["sftp://h/a.txt"])

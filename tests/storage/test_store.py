"""Stores: a folder and a prefix of an object store behave alike, and files are complete or absent."""

import os
import threading
from pathlib import Path

import fsspec
import pytest

from stella_jax.storage.store import DamagedFileError, LocalStore, RemoteStore, Store, open_store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        found = open_store(tmp_path / "deep" / "out")
    else:
        found = open_store(f"memory://{tmp_path.name}/out/")
    found.prepare("plan")
    return found


def write(store: Store, name: str, data: bytes) -> None:
    with store.replacing(name) as file:
        file.write(data)


def raise_after(done: object, error: BaseException) -> None:
    raise error


# Both


def test_a_file_is_written_read_and_replaced(store):
    with store.replacing("plan/a") as file:
        file.write(b"one two")
        file.seek(4)
        assert file.read() == b"two"
    assert store.read("plan/a") == b"one two"
    write(store, "plan/a", b"three")
    assert store.read("plan/a") == b"three"
    with store.open("plan/a") as file:
        file.seek(-2, os.SEEK_END)
        assert file.read() == b"ee"


def test_a_failed_block_changes_nothing(store):
    write(store, "a", b"before")
    for name, error in (("a", OSError()), ("b", KeyboardInterrupt())):
        with pytest.raises(type(error)), store.replacing(name) as file:
            raise_after(file.write(b"after"), error)
    assert store.read("a") == b"before"
    assert store.size("b") is None
    assert [name for name in store.sizes() if name != "plan"] == ["a"]


def test_sizes_and_removal(store):
    write(store, "plan/a", b"12345")
    write(store, "b", b"")
    assert (store.size("plan/a"), store.size("b"), store.size("plan/b"), store.size("plan")) == (5, 0, None, None)
    assert store.sizes("plan") == {"a": 5}
    assert store.sizes()["b"] == 0
    assert store.sizes("none") == {}
    store.remove("plan/a")
    store.remove("plan/a")
    assert (store.sizes("plan"), store.size("plan/a")) == ({}, None)


def test_a_missing_file_raises_file_not_found(store):
    with pytest.raises(FileNotFoundError):
        store.open("a")
    with pytest.raises(FileNotFoundError):
        store.read_json("a")


def test_append(store):
    store.append("a", b"1\n")
    store.append("a", b"2\n")
    assert store.read("a") == b"1\n2\n"


def test_json_round_trip(store):
    store.write_json("a", {"b": [1, "\ud800"], "a": None})
    assert store.read_json("a") == {"b": [1, "\ud800"], "a": None}
    first = store.read("a")
    store.write_json("a", {"b": [1, "\ud800"], "a": None})
    assert store.read("a") == first


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[]", b"3", b"{}", b'{"checksum": null}'],
    ids=["empty", "open", "not-utf8", "list", "number", "no-checksum", "null"],
)
def test_damaged_json(store, data, refused):
    write(store, "a", data)
    with refused(f"{store}/a: ", error=DamagedFileError):
        store.read_json("a")


def test_every_changed_byte_of_json_is_detected(store):
    store.write_json("a", {"b": ["\u00e9", 1], "a": None})
    data = store.read("a")
    for i in range(len(data)):
        for damaged in (data[:i], data[:i] + bytes([data[i] ^ 0x20]) + data[i + 1 :]):
            write(store, "b", damaged)
            with pytest.raises(DamagedFileError):
                store.read_json("b")


def test_two_readers_of_a_file_have_positions_of_their_own(store):
    write(store, "a", b"abcdef")
    with store.open("a") as first, store.open("a") as second:
        assert (first.read(2), second.read(3), first.read(), second.read()) == (b"ab", b"abc", b"cdef", b"def")


# A folder


def test_listing_while_files_appear_and_disappear(tmp_path):
    store = open_store(tmp_path)
    store.prepare("plan")
    stop = threading.Event()

    def write_and_remove():
        while not stop.is_set():
            write(store, "plan/a", b"1")
            store.remove("plan/a")

    thread = threading.Thread(target=write_and_remove)
    thread.start()
    try:
        found = [(store.sizes("plan"), store.size("plan/a")) for _ in range(2000)]
    finally:
        stop.set()
        thread.join()
    assert {tuple(sizes.items()) for sizes, _ in found} <= {(), (("a", 1),), (("a", 0),)}
    assert {size for _, size in found} <= {None, 0, 1}


def test_a_folder_is_created_only_when_needed(tmp_path):
    store = open_store(f"file://{tmp_path}/x/y")
    assert isinstance(store, LocalStore)
    assert (store.sizes(), store.size("a"), store.temp_dir) == ({}, None, tmp_path)
    assert not (tmp_path / "x").exists()
    store.prepare("plan")
    assert store.temp_dir == tmp_path / "x" / "y"
    assert (tmp_path / "x" / "y" / "plan").is_dir()


def test_temporary_files_are_removed_unless_their_writer_lives(tmp_path):
    store = open_store(tmp_path)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / ".a.0123abcd.tmp").touch()
    (tmp_path / ".b.0123abcd.tmp.txt").touch()
    with store.replacing("plan/b") as file:
        file.write(b"12")
        assert store.sizes("plan") == {}
        store.prepare("plan")
        assert len(list((tmp_path / "plan").iterdir())) == 1
    assert store.sizes("plan") == {"b": 2}
    assert (tmp_path / ".b.0123abcd.tmp.txt").exists()


def test_a_file_is_not_a_store(tmp_path, refused):
    (tmp_path / "a").touch()
    with refused("/a"):
        open_store(tmp_path / "a")


# An object store


def test_urls_and_paths(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_store("memory://a"), RemoteStore)
    assert isinstance(open_store(Path("memory://a")), LocalStore)
    assert str(open_store("memory://a/b/")) == "memory://a/b"
    assert str(open_store("MEMORY://A/b")) == "memory://A/b"
    assert str(open_store("File://a/b")) == "a/b"
    with refused("nosuch://a"):
        open_store("nosuch://a")


def test_objects_are_stored_under_the_url(tmp_path):
    store = open_store(f"memory://{tmp_path.name}/out")
    store.prepare("plan")
    assert store.sizes() == {}
    write(store, "plan/a", b"1")
    assert fsspec.filesystem("memory").cat(f"/{tmp_path.name}/out/plan/a") == b"1"
    assert store.sizes() == {}  # folders are not listed
    assert store.temp_dir.is_dir()


def test_a_failed_upload(tmp_path, monkeypatch, refused):
    store = open_store(f"memory://{tmp_path.name}/out")

    def refuse(*args, **options):
        raise ValueError("quota exceeded")

    monkeypatch.setattr(fsspec.filesystem("memory"), "open", refuse)
    with refused(f"memory://{tmp_path.name}/out/a: ", "quota exceeded"):
        write(store, "a", b"1")


def test_only_temporary_files_of_stores_are_removed(tmp_path):
    store = open_store(tmp_path)
    own, left = [".important.tmp", ".a.b.tmp", ".a.0123456.tmp", "a.01234567.tmp", ".01234567.tmp"], ".a.0123abcd.tmp"
    for name in (*own, left):
        (tmp_path / name).write_bytes(b"x")
    assert store.leftovers() == [left]
    store.prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(own)
    assert sorted(store.sizes()) == sorted(own)


def test_a_pipe_is_not_opened(tmp_path, refused):
    os.mkfifo(tmp_path / "job.json")
    with refused("job.json"):
        open_store(tmp_path).read_json("job.json")


def test_an_error_names_the_file_and_not_its_temporary_file(tmp_path):
    """The name is short enough, the temporary file's is not."""
    name = "x" * 250
    with pytest.raises(OSError, match="too long") as error, open_store(tmp_path).replacing(name):
        pass
    assert error.value.filename == str(tmp_path / name)

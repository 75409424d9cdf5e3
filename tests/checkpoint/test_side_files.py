"""The files beside the weights, in both directions."""

import os
from pathlib import Path

import pytest

from convert.__main__ import main
from stella_jax.checkpoint import side_files


@pytest.fixture
def source(checkpoint_copy) -> Path:
    directory = checkpoint_copy("stella")
    for name in ("curves.png", "scores.svg", "photo.jpg"):
        (directory / name).write_bytes(name.encode())
    return directory


def test_pictures_of_a_card_are_converted_both_ways(source, tmp_path) -> None:
    flax, torch = tmp_path / "flax", tmp_path / "torch"
    assert main([str(source), str(flax), "--verify"]) == 0
    assert main([str(flax), str(torch), "--to", "torch"]) == 0
    for name in ("curves.png", "scores.svg", "photo.jpg"):
        assert (flax / name).read_bytes() == (torch / name).read_bytes() == name.encode()


def test_verify_names_a_changed_picture(source, tmp_path, capsys, check_message) -> None:
    assert main([str(source), str(tmp_path / "flax")]) == 0
    (tmp_path / "flax/curves.png").write_bytes(b"other")
    assert main([str(source), str(tmp_path / "flax"), "--verify"]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "curves.png")


def test_large_pictures_and_pictures_in_folders_are_not_copied(source, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(side_files, "MAX_PICTURE_BYTES", 9)
    (source / "1_Pooling/a.png").touch()
    assert main([str(source), str(tmp_path / "flax"), "--dry-run"]) == 0
    assert "not copied: 1_Pooling/a.png, curves.png, scores.svg\n" in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_link_that_leads_out(source, tmp_path, capsys, options, check_message) -> None:
    (source / "docs").symlink_to("/")
    assert main([str(source), str(tmp_path / "flax"), *options]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "'docs'")
    assert not (tmp_path / "flax").exists()


def test_huge_side_file(source, tmp_path, capsys, check_message) -> None:
    (source / "README.md").touch()
    os.truncate(source / "README.md", 2**40)
    assert main([str(source), str(tmp_path / "flax")]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "README.md: 1099511627776 ")
    assert not (tmp_path / "flax").exists()

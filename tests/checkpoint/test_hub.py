"""Names of models: directories, the included checkpoint, and repos in the Hub's cache; all offline."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from paths import GOLDENS

from stella_jax import Stella
from stella_jax.checkpoint.hub import IGNORED, PATTERNS, TINY, resolve
from stella_jax.mteb import MtebEncoder

REPO = "NovaSearch/stella_en_400M_v5"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub cache as after downloads: refs, and snapshots of links into blobs; main is the first of two commits."""
    repo = tmp_path / ("models--" + REPO.replace("/", "--"))
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for commit, golden in ((COMMIT, "stella"), (OLDER, "gte-large-en")):
        for file in (path for path in (GOLDENS / golden).rglob("*") if path.is_file()):
            link = repo / "snapshots" / commit / file.relative_to(GOLDENS / golden)
            blob = repo / "blobs" / f"{golden}-{'-'.join(link.parts[-2:])}"
            shutil.copy(file, blob)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("../" * (len(link.relative_to(repo).parts) - 1)) / "blobs" / blob.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repo


def test_cached_repo(cache):
    assert resolve(REPO) == cache / "snapshots" / COMMIT
    model = Stella.from_pretrained(REPO, dim=32)
    assert model.dims == (32, 48, 64, 128)


def test_revision(cache):
    assert resolve(REPO, revision=OLDER) == cache / "snapshots" / OLDER
    assert Stella.from_pretrained(REPO, revision=OLDER).dims == (64,)


def test_revision_for_mteb(cache):
    newest, older = MtebEncoder(REPO).model, MtebEncoder(REPO, OLDER).model
    assert newest.checkpoint.directory.root == cache / "snapshots" / COMMIT
    assert older.checkpoint.directory.root == cache / "snapshots" / OLDER
    np.testing.assert_array_equal(older.encode("tea"), Stella.from_pretrained(GOLDENS / "gte-large-en").encode("tea"))


@pytest.mark.parametrize("revision", ["v9", "c" * 40])
def test_missing_revision(cache, revision, refused):
    with refused(REPO):
        resolve(REPO, revision=revision)


def test_missing_repo(cache, refused):
    with refused("nobody/nothing"):
        resolve("nobody/nothing")


def test_a_url_is_not_a_model(refused):
    with refused("gs://bucket/x: a URL", "copy it"):
        resolve("gs://bucket/x")


def test_own_cache_folder(cache, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    options = {"cache_folder": tmp_path, "local_files_only": True, "token": "hf_secret"}
    assert resolve(REPO, **options) == cache / "snapshots" / COMMIT
    assert Stella.from_pretrained(REPO, dim=32, **options).dim == 32
    with refused(REPO):
        resolve(REPO)


def test_local_files_only(cache, monkeypatch, refused):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with refused("nobody/nothing"):
        resolve("nobody/nothing", local_files_only=True)


def test_link_out_of_a_snapshot(cache, tmp_path, refused):
    outside = tmp_path / "outside.json"
    shutil.copy(GOLDENS / "stella/config.json", outside)
    link = cache / "snapshots" / COMMIT / "config.json"
    link.unlink()
    link.symlink_to(outside)
    with refused("config.json"):
        Stella.from_pretrained(REPO)


def test_embedded_checkpoint():
    assert resolve("tiny") == TINY
    assert resolve(TINY) == TINY


@pytest.mark.parametrize("name", [str(GOLDENS / "stella"), GOLDENS / "stella"])
def test_directory(name):
    assert resolve(name) == GOLDENS / "stella"


def test_directory_takes_precedence_over_a_repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(REPO).mkdir(parents=True)
    assert resolve(REPO) == Path(REPO)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "stella",
        "a/b/c",
        "../x/y",
        "https://huggingface.co/a/b",
        "~nobody-of-this-name/x",
        "a\0b",
        "x" * 5000,
        "a/b\n",
    ],
)
def test_invalid_model_names(name, refused):
    with refused():
        resolve(name)


@pytest.mark.parametrize("name", [None, 5, b"tiny", ["tiny"]])
def test_names_of_other_types(name, refused):
    with refused():
        resolve(name)


def test_no_executable_file_is_fetched():
    wanted = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "2_Dense_256/config.json"]
    wanted += ["model.safetensors.index.json", "2_Dense_256/model.safetensors", "tokenizer.json", "vocab.txt"]
    never = ["modeling.py", "configuration.py", "pytorch_model.bin", "2_Dense_256/pytorch_model.bin", "model.pt"]
    never += ["model.pth", "model.ckpt", "x.pkl", "x.pickle", "x.npy", "x.h5", "x.so", "x.sh", "x.exe", "tf_model.h5"]
    never += [
        "config.json.py",
        "onnx/model.onnx",
        "onnx/config.json",
        "flax_model.msgpack",
        "x.joblib",
        "rust_model.ot",
    ]
    kept = list(filter_repo_objects(wanted + never, allow_patterns=list(PATTERNS), ignore_patterns=list(IGNORED)))
    assert kept == wanted


@pytest.mark.parametrize("name", ["tiny", GOLDENS / "stella"])
def test_local_checkpoints_have_no_revisions(name, refused):
    with refused(str(name), "main"):
        resolve(name, "main")

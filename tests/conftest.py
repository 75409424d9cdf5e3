"""Settings of all tests, and fixtures that they share."""

import gc
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

# Set before any import that reads it: no test may access the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"

# Torch's threads spin while they wait for each other, which takes most of a test's time beside other workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiled programs are kept for other tests, for subprocesses and for the next run, which takes a sixth less CPU time.
# Each worker has its own folder, as JAX's writes are not atomic.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "xla"))
os.environ["JAX_COMPILATION_CACHE_DIR"] += "/" + os.environ.get("PYTEST_XDIST_WORKER", "")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import fsspec
import jax
import pytest
from corruptions import assert_readable
from hypothesis import settings
from paths import GOLDENS, ROOT
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.amber import AmberSnapshotExtension

from stella_jax import Stella, StellaError

# The same programs, some eight times as quick to compile (jax 0.12: twice) and slower to run: most of a test's time is
# XLA's. `XLA_FLAGS= pytest ...` compiles as users do, which `make test-numbers` asks of the tests of numbers.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # later ones do not know it, and end
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

# An accidental broadcast is a bug whose shapes happen to fit.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Simulated devices, for meshes; everything else runs on the first of them.
jax.config.update("jax_num_cpu_devices", 8)

# No deadline: the first example of a shape compiles for a second.
settings.register_profile("stella", deadline=None, derandomize=True)
settings.load_profile("stella")


# Files that run first, so that no worker is left with one of them at the end.
LONG = ("blocks", "corpus", "embedding_model", "killed_commands", "loop", "losses", "optimizers", "qwen2", "ray_job")
LONG += ("resume", "step", "training_hosts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


def pytest_collection_finish() -> None:
    """Garbage collection passes over what the imports made, and is rarer: it took a twelfth of the time."""
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session")
def stella() -> Stella:
    """The stand-in for stella_en_400M_v5, float32."""
    return Stella.from_pretrained(GOLDENS / "stella", dtype="float32")


@pytest.fixture(scope="session")
def arctic() -> Stella:
    """The stand-in for arctic-embed-m-v2: other tokenizer, cls pooling, Normalize, prompt `query`."""
    return Stella.from_pretrained(GOLDENS / "arctic-m-v2")


@pytest.fixture(scope="session")
def tiny() -> Stella:
    """The included checkpoint for jobs: texts are cut at eight tokens, so that one shape is compiled."""
    model = Stella.from_pretrained("tiny", dim=32)
    model.max_seq_length = 8
    return model


@pytest.fixture(scope="module")
def two_buckets() -> Iterator[None]:
    """Batches of two lengths only, since each length is a compilation. test_oracle.py tests all lengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stella_jax.batching.bucket_lengths", lambda longest: [16, max(longest, 17)])
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The file system of memory:// URLs, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def checkpoint_copy(tmp_path: Path) -> Callable[..., Path]:
    """Copies a golden checkpoint to a folder where a test may change it."""

    def copy(name: str = "stella") -> Path:
        return Path(shutil.copytree(GOLDENS / name, tmp_path / name))

    return copy


@pytest.fixture(scope="module")
def torch_reference():
    """The module torch_reference, PyTorch's side of a comparison. Warnings of its packages are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_reference

        yield torch_reference


class MessageFile(AmberSnapshotExtension):
    """A test file's messages, in tests/messages."""

    @classmethod
    def dirname(cls, *, test_location: object) -> str:
        return str(Path(__file__).parent / "messages")


@pytest.fixture
def check_message(snapshot: SnapshotAssertion, tmp_path: Path) -> Callable[..., None]:
    """`check_message(message, "corpus.xml")` expects a readable message that names corpus.xml.

    Its wording is in tests/messages, which `make messages` rewrites.
    """
    messages = snapshot.use_extension(MessageFile)

    def check(message: str, *names: str, varies: bool = False, mask: str = "") -> None:
        """With `varies`, where the wording depends on the system or on a version, only the names are compared.

        Where a part depends on it, such as a port or another package's words, `mask` is a pattern for that part.
        """
        assert_readable(message)
        for name in names:
            assert name in message
        for folder, placeholder in ((tmp_path, "TMP"), (tmp_path.name, "TMP"), (ROOT, "ROOT")):
            message = message.replace(str(folder), placeholder)
        message = re.sub(rf"{re.escape(str(tmp_path.parent))}/[\w.-]+", "SHARED", message)  # of tmp_path_factory
        message = re.sub(mask, "...", message) if mask else message
        assert varies or message == messages

    return check


# "corpus.xml: unsupported file type; supported: ...", "dim must be ..., not 0." or "unsupported dtype ...". A list of
# faults follows a colon.
FORM = re.compile(r"(.+?: .+|.+ must .+|unsupported .+)\.|.+:")

Refused = Callable[..., AbstractContextManager[pytest.ExceptionInfo[Exception]]]


@pytest.fixture
def refused(check_message: Callable[..., None]) -> Refused:
    """`with refused("corpus.xml"): ...` expects an error that names corpus.xml; see check_message."""

    @contextmanager
    def block(
        *names: str, error: type[Exception] = StellaError, varies: bool = False, mask: str = ""
    ) -> Iterator[pytest.ExceptionInfo[Exception]]:
        with pytest.raises(error) as raised:
            yield raised
        assert error is not StellaError or FORM.fullmatch(str(raised.value).splitlines()[0]), "not the form of errors"
        check_message(str(raised.value), *names, varies=varies, mask=mask)

    return block

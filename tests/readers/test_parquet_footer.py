"""Sizes in the footer: pyarrow's own, and a sentence for every byte that is damaged."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from marks import slow

from stella_jax import StellaError
from stella_jax.readers import parquet_rows
from stella_jax.readers.columns import Column
from stella_jax.readers.parquet_footer import dictionary_bytes, read_row_groups
from stella_jax.readers.records import read_rows
from stella_jax.storage.location import locate

TABLE = pa.table(
    {
        "text": ["aaa", "bbb", None] * 9,
        "id": [str(i) for i in range(27)],
        "x": [[True, False]] * 27,
        "y": [{"z": 0.5}] * 27,
    }
)
COLUMNS = (Column("text"), Column("id"))


def stored(**settings: Any) -> io.BufferedReader:
    file = io.BytesIO()
    pq.write_table(TABLE, file, row_group_size=20, **settings)
    return io.BufferedReader(io.BytesIO(file.getvalue()))  # type: ignore[arg-type]


@pytest.mark.parametrize("dictionary", [True, False, ["id"]], ids=["all", "none", "id"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_same_sizes_as_pyarrow(dictionary, compression):
    file = stored(use_dictionary=dictionary, compression=compression, write_page_index=True, write_page_checksum=True)
    groups, metadata = read_row_groups(file), pq.read_metadata(file)
    assert [group.rows for group in groups] == [20, 7]
    for i, group in enumerate(groups):
        for j, chunk in enumerate(group.chunks):
            seen = metadata.row_group(i).column(j)
            assert ".".join(chunk.path) == seen.path_in_schema
            assert (chunk.unpacked, chunk.packed) == (seen.total_uncompressed_size, seen.total_compressed_size)
            assert chunk.dictionary == (seen.dictionary_page_offset or 0)
            assert chunk.offset == (seen.dictionary_page_offset or seen.data_page_offset)
            if chunk.dictionary and chunk.column == "id":
                assert dictionary_bytes(file, chunk) == sum(
                    4 + len(text.as_py()) for text in TABLE["id"][20 * i :][:20]
                )


@pytest.mark.parametrize("compression", [*slow("none"), "zstd"])
def test_any_damaged_byte(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 2**10)  # so that page headers are read
    content = stored(compression=compression).read()
    path = tmp_path / "a.parquet"
    refused = []
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :])
        try:
            list(read_rows(locate(path), COLUMNS))
        except StellaError as error:
            refused.append(str(error))
    assert len(refused) > len(content) // 4
    assert all(str(path) in sentence for sentence in refused)

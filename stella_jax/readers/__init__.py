"""Reading rows from .jsonl, .csv, .txt and .parquet files, whole or in splits."""

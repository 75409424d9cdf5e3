"""Bulk embedding: inputs -> parts of fixed row counts -> one Parquet file a part, and a manifest over all."""

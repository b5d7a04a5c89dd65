"""What `predict` consists of: sources, videos, the pipeline, writers, chunks of Parquet files."""

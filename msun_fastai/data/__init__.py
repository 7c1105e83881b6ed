"""Images, datasets and batches of one scale."""

"""From annotated images on disk to batches: reading, augmentation, loading."""

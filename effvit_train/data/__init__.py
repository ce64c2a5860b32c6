"""Data: sources, splits, decoding, keyed augmentation, loaders."""

"""Compression techniques, one module or package each (see `effvit_train.parts`)."""

"""A model as one file for other runtimes. Importing this package imports neither torch nor ONNX Runtime."""

from __future__ import annotations

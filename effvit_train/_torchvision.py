"""Make `import torchvision` work beside a CPU build of torch.

The registry's torchvision is a CUDA build. Its compiled extension cannot load without CUDA, and
`import torchvision` then dies because the schemas of the operators that it registers fake kernels
for do not exist; timm, torchmetrics and pytorch_lightning die with it. `install()` registers an
import hook that, just before torchvision is first imported, tries that extension and defines the
two missing schemas only where it cannot be loaded. The operators themselves still raise a clear
error when called. Where torchvision is whole, the hook changes nothing.

A hook, and not an eager import, because importing torch takes a second and `--help` needs none.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[object] = []  # a torch.library.Library unregisters its schemas when collected


class _TorchvisionHook:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec is not None and spec.submodule_search_locations:
                _define_missing_operators(Path(next(iter(spec.submodule_search_locations))))
        return None


def install() -> None:
    """Register the import hook once; does nothing when torchvision is imported already."""
    if "torchvision" in sys.modules:
        return
    if not any(isinstance(finder, _TorchvisionHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionHook())


def _define_missing_operators(package: Path) -> None:
    import torch

    for extension in sorted(package.glob("_C*.so")) + sorted(package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(extension))
            return
        except (ImportError, OSError):
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)

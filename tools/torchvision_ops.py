"""Lets a CUDA build of torchvision import beside a CPU build of torch. `make` puts it into its environment; see below.

transformers' video processors use only torchvision's pure-Python transforms, but importing the package registers fakes for two
C++ operators whose library needs CUDA. Declaring the two operators first is enough. Where the builds match, this does nothing.
Usage: python tools/torchvision_ops.py   (copies itself and a .pth file into the running interpreter's site-packages)
"""

import importlib.util
import sys
import sysconfig
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class _BeforeTorchvision(MetaPathFinder):
    library: Any = None

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch  # noqa: PLC0415 - only where torchvision is wanted

        if torch.version.cuda is None and _is_cuda_build():
            _BeforeTorchvision.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _is_cuda_build() -> bool:
    spec = importlib.util.find_spec("torchvision")
    return spec is not None and "+cu" in (Path(str(spec.origin)).parent / "version.py").read_text()


def install() -> None:
    """Copy this file and the line that imports it into site-packages."""
    packages = Path(sysconfig.get_path("purelib"))
    (packages / "taskmem_torchvision_ops.py").write_text(Path(__file__).read_text())
    (packages / "taskmem_torchvision_ops.pth").write_text("import taskmem_torchvision_ops\n")


if __name__ == "__main__":
    install()
else:
    sys.meta_path.insert(0, _BeforeTorchvision())

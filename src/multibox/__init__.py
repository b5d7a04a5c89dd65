"""multibox: SSD object detection, faithful to the original, for today's PyTorch.

from multibox import Detector

detector = Detector.open("runs/bccd")
detections = detector("photo.jpg")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from multibox.errors import MultiboxError

if TYPE_CHECKING:
    from multibox.detector import Detection, Detector

__all__ = ["Detection", "Detector", "MultiboxError", "__version__"]
__version__ = version("multibox")


def __getattr__(name: str) -> object:
    """Loads PyTorch, which takes seconds, when it is needed."""
    if name not in ("Detection", "Detector"):
        raise AttributeError(f"module 'multibox' has no attribute {name!r}")
    from multibox import detector

    return getattr(detector, name)

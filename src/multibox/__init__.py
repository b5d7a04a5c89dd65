"""multibox: SSD object detection, faithful to the original, for today's PyTorch.

from multibox import Detector

detector = Detector.open("runs/bccd")
detections = detector("photo.jpg")
"""

from importlib.metadata import version

from multibox.errors import MultiboxError
from multibox.predict import Detection, Detector

__all__ = ["Detection", "Detector", "MultiboxError", "__version__"]
__version__ = version("multibox")

"""Five published anomaly-detection systems on one plain-PyTorch library.

Importing this package is cheap: nothing heavy is loaded and no work is done. Take what you need by name, e.g.
``from anomaly_lib.metrics import aupro`` or ``detector = anomaly_lib.load("runs/.../checkpoint.pt")``.
"""

__version__ = "0.1.0"

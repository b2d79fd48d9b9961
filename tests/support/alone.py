"""An exported file in a process that sees nothing of this library."""

import subprocess
import sys
from pathlib import Path

import numpy as np

ALONE = """
import sys
import numpy
sys.path.insert(0, sys.argv[1])
from runner import Detector
detector = Detector(sys.argv[2])
found = [detector(path) for path in sys.argv[4:]]
assert "torch" not in sys.modules and "anomaly_lib" not in sys.modules
numpy.savez(sys.argv[3], **{name: numpy.stack([one[name] for one in found]) for name in found[0]})
"""


def run_alone(path: Path, files: list[str], folder: Path) -> dict[str, np.ndarray]:
    """What the runner beside the file answers for the files, in a process that can see nothing but them."""
    words = [str(path.parent), str(path), str(folder / "found.npz"), *files]
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "found.npz"))

"""How the options of each program are tried: what every run of it is given, and what makes an option's effect visible.

A program that trains a system is not listed: `tests/test_options_act.py` walks the systems themselves. Two programs
with one class of options share a walk.
"""

from tests.walks import crystal, detectors, others, promptad, tools, weld
from tests.walks.registry import WALKS

__all__ = ["WALKS", "crystal", "detectors", "others", "promptad", "tools", "weld"]

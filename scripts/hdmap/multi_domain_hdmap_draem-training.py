#!/usr/bin/env python3
"""HDMAP domain transfer with draem: one condition of the JSON file beside this script."""

import sys
from collections.abc import Sequence

from anomaly_lib.systems.detectors.hdmap.script import script_main


def main(argv: Sequence[str] | None = None) -> int:
    return script_main("draem", __file__, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Run a training command again and again, killing it with SIGKILL at random moments, until it ends by itself.

    python tests/support/killing.py SCRIPT.py KILLS LONGEST_SECONDS [ARGS...]

The script's imports are paid once: every attempt is a fork of this process, which itself runs no tensor code.
Prints the number of attempts that were killed.
"""

import importlib.util
import os
import random
import signal
import sys
import time


def load(path: str):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("target", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["target"] = module
    spec.loader.exec_module(module)
    return module


def attempt(main, argv: list[str], seconds: float | None) -> bool:  # type: ignore[no-untyped-def]
    """True when the attempt was killed, False when it finished; a failure ends everything."""
    child = os.fork()
    if child == 0:
        os._exit(main(argv))
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return _ended(status)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return _ended(os.waitpid(child, 0)[1])


def _ended(status: int) -> bool:
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        sys.exit(f"the attempt failed with exit code {os.WEXITSTATUS(status)}")
    return False


if __name__ == "__main__":
    script, kills, longest, *argv = sys.argv[1:]
    target, rng, killed = load(script), random.Random(0), 0
    while killed < int(kills) and attempt(target.main, argv, rng.uniform(0.02, float(longest))):
        killed += 1
    attempt(target.main, argv, None)
    print(killed)

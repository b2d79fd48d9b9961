"""The walks by the name of their program, and reasons that several share."""

from collections.abc import Callable

from tests.support.making import Made
from tests.support.walking import Walk

WALKS: dict[str, Callable[[Made], Walk]] = {}

SPEED = "how fast or in how much memory, not what"
DAMAGED = "what happens to damaged files, of which the data here have none: tests/unit/data/test_readers.py"
ASKS_OTHERS = "another program that is not installed here"
ASKS_THE_NETWORK = "allows a download"
RECORDED = "changes files of the repository, docs and benchmarks"


def walk_of(program: str) -> Callable[[Callable[[Made], Walk]], Callable[[Made], Walk]]:
    """The decorated function says how `program` is walked."""

    def note(make: Callable[[Made], Walk]) -> Callable[[Made], Walk]:
        WALKS[program] = make
        return make

    return note

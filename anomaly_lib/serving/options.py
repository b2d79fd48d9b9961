"""Options of the server."""

import ipaddress
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.config import arg, override
from anomaly_lib.errors import OptionError
from anomaly_lib.evaluation.options import AskedRate, OpenedAs, PredictArgs

MOST_MEGAPIXELS = 178  # more are never decoded by Pillow, which takes them for an attack
SHORTEST_TOKEN = 8


def is_loopback(host: str) -> bool:
    """Does only this machine reach the address?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class ServeArgs(OpenedAs, AskedRate):
    """A server and a page for trained image detectors."""

    checkpoint: list[str] = arg([], "checkpoint files, run folders or glob patterns; may stand without the flag")
    obj: Optional[str] = override(PredictArgs, "obj")
    host: str = arg("127.0.0.1", "address to listen on; one that other machines can reach needs a token")
    port: int = arg(8000, "port to listen on; 0 = any that is free", at_least=0, at_most=65535)
    token: Optional[str] = arg(None, "word that a request must bring, as 'Authorization: Bearer TOKEN'", type=str)
    output_dir: str = arg("served", "folder for the history, marked images and marks.csv", aliases=["out", "output"])
    batch_size: int = arg(8, "images scored together, where so many wait", at_least=1)
    queue: int = arg(64, "images that may wait; more are refused until some are done", at_least=1)
    upload_mib: int = arg(32, "largest request in MiB", at_least=1)
    megapixels: int = arg(50, "largest image in millions of pixels", at_least=1, at_most=MOST_MEGAPIXELS)
    idle_seconds: float = arg(0.0, "leave when nobody has asked anything for this long; 0 = never", at_least=0)

    def check(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise OptionError(f"host={self.host}: other machines can reach it; give token=")
        if self.token is not None and (
            len(self.token) < SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable()
        ):
            raise OptionError(f"token={self.token}: takes at least {SHORTEST_TOKEN} printable ASCII characters")
        if self.token is not None and " " in self.token:
            raise OptionError(f"token={self.token}: takes no blanks")

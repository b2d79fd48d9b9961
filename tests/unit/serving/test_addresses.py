"""What each address answers, over a socket: results, pictures, marks, refusals."""

import base64
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from anomaly_lib.serving.app import Server
from anomaly_lib.serving.options import ServeArgs
from anomaly_lib.serving.run import listening
from tests.support.serving import Brightness, picture, served, until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Server]]:
    detectors = Brightness(), Brightness(None)
    limits = {"upload_mib": 1, "megapixels": 1, "queue": 20}
    with (
        served(tmp_path_factory.mktemp("served"), *detectors, **limits) as (address, server),
        httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
    ):
        yield client, server


@pytest.fixture
def client(running: tuple[httpx.Client, Server]) -> httpx.Client:
    return running[0]


def files(*levels: int) -> list[tuple[str, Any]]:
    return [("file", (f"{level}.png", picture(level))) for level in levels]


def refused(answer: httpx.Response, status: int, said: str) -> None:
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert list(content) == ["error"]
    assert "\n" not in content["error"]
    assert said in content["error"]


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_forms_and_bodies_get_what_is_known(client: httpx.Client) -> None:
    said = client.post("/predict", files=files(51, 204)).json()
    assert said["model"] == "a"
    assert said["remarks"] == ["a stand-in of the tests"]
    dark, bright = said["results"]
    assert list(dark) == ["name", "sha", "score", "p_value", "anomalous", "area", "threshold"]
    assert (dark["name"], dark["anomalous"], dark["threshold"], dark["area"]) == ("51.png", False, 0.5, 0.0)
    assert dark["score"] == pytest.approx(0.2)
    assert (bright["anomalous"], bright["p_value"]) == (True, 0.05)
    raw = client.post("/predict?name=../x.png", content=picture(51)).json()["results"][0]
    assert raw == {**dark, "name": "x.png"}
    undecided = client.post("/predict?model=b", files=files(51)).json()
    assert list(undecided["results"][0]) == ["name", "sha", "score"]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio switches Nagle's algorithm off for sockets of TCP alone, and accepted ones are as their listener."""
    with listening(ServeArgs(port=0)) as (listener, _):
        assert listener.proto == socket.IPPROTO_TCP


def test_pictures(client: httpx.Client) -> None:
    one = client.post("/predict?overlay=true", files=files(240)).json()["results"][0]
    assert (pixels(one["picture"]) == 240).all()
    assert pixels(one["overlay"]).shape == (8, 8, 3)
    layers = client.post("/predict?overlay=layers", files=files(240)).json()["results"][0]
    assert layers["area"] == 1.0
    assert {"picture", "heat"} <= layers.keys()
    assert Image.open(io.BytesIO(base64.b64decode(layers["heat"]))).info["transparency"][0] == 0


def test_history_and_marks(running: tuple[httpx.Client, Server]) -> None:
    client, server = running
    client.post("/predict", files=files(10))
    client.post("/predict", files=files(250))
    before = client.get("/history").json()
    assert [row["name"] for row in before["rows"][:2]] == ["250.png", "10.png"]
    assert before["rows"][0]["anomalous"] is True
    said = client.post("/mark?truth=bad", files=files(10)).json()
    assert said == {"marked": "bad", "images": 1, "good": 0, "bad": 1}
    counted = server.metrics.images.total()
    assert client.post("/mark?truth=good", files=files(10, 250)).json()["good"] == 2
    assert server.metrics.images.total() == counted  # they were counted when they were predicted
    rows = client.get("/history").json()["rows"]
    assert [row.get("truth") for row in rows[:2]] == ["good", "good"]
    assert client.get("/history?model=b").json()["rows"] is not None


def test_looking_around(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    a, b = client.get("/models").json()["models"]
    assert (a["name"], a["system"], a["threshold"], a["false_alarms"]) == ("a", "brightness", 0.5, 0.05)
    assert "threshold" not in b
    assert b["undecided"]
    counted = client.get("/metrics")
    assert counted.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'anomaly_lib_images_total{model="a",decision="normal"}' in counted.text
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert page.text.count(f'nonce="{nonce}"') == 2
    assert "@NONCE@" not in page.text
    assert client.get("/").headers["content-security-policy"] != policy
    assert "/predict" in client.get("/openapi.json").json()["paths"]


def test_a_drift_is_told_at_every_place(tmp_path: Path) -> None:
    """Forty parts near the threshold, each another picture, are not like normal ones; one part forty times is none."""
    with (
        served(tmp_path, Brightness(), Brightness(None)) as (address, server),
        httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
    ):
        for _ in range(40):
            client.post("/predict", files=files(120))
        assert client.get("/health").json() == {"status": "ok"}
        assert 'anomaly_lib_drift{model="a"} 0' in client.get("/metrics").text
        said: dict[str, Any] = {}
        for number in range(40):
            form = [("file", (f"{number}.png", picture(120 + number % 4, (12 + number, 10))))]
            said = client.post("/predict", files=form).json()
        words = said["drift"]
        assert words.startswith("drift: after ")
        assert "the scores of those taken for normal rise" in words
        assert client.get("/health").json() == {"status": "ok", "drift": {"a": words}}
        assert client.get("/history").json()["drift"] == words
        assert 'anomaly_lib_drift{model="a"} 1' in client.get("/metrics").text
        assert 'drift{model="b"}' not in client.get("/metrics").text  # it decides nothing
        assert server.watch.found == {"a": words}


def declared(width: int, height: int) -> bytes:
    """A PNG whose header says another size, with a right checksum."""
    png = picture(0)
    head = struct.pack(">II", width, height) + png[24:29]
    return png[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + png[33:]


def test_what_is_no_image_is_refused(client: httpx.Client) -> None:
    refused(client.post("/predict"), 400, "no image in the request")
    refused(client.post("/predict", data={"file": "x"}), 422, "image: unreadable image")  # as curl -d sends it
    refused(client.post("/predict", content=b"hello"), 422, "image: unreadable image (not an image)")
    refused(client.post("/predict", files=[*files(1), ("b", ("b.png", b"x"))]), 422, "b.png: unreadable image")
    refused(client.post("/predict", content=picture(0, (1, 1))[:40]), 422, "unreadable image")
    refused(
        client.post("/predict", files={"file": ("row.png", picture(0, (9, 1)))}), 422, "row.png: a picture of one row"
    )
    for size in ((1001, 1000), (20_000, 20_000), (2**31 - 1, 1)):
        answer = client.post("/predict", content=declared(*size))
        assert answer.status_code in (413, 422)
        assert len(answer.json()["error"].splitlines()) == 1
    refused(client.post("/predict", content=declared(1001, 1000)), 413, "at most 1,000,000 are taken")
    refused(client.post("/predict", content=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 422, "not an image")
    broken = client.post("/predict", content=b"--x\r\nbroken", headers={"content-type": "multipart/form-data"})
    assert broken.status_code == 400
    refused(client.post("/predict", files=files(*range(21))), 413, "at most 20 are taken")


def test_a_failure_of_the_detector_is_that_requests(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    refused(client.post("/predict", files={"file": ("c.png", picture(0, (1, 9)))}), 500, "its log says where")
    until(lambda: "one column" in caplog.text)
    assert client.post("/predict", files=files(51)).status_code == 200


def test_wrong_addresses_and_options(client: httpx.Client) -> None:
    refused(client.get("/nowhere"), 404, "there are /predict")
    refused(client.get("/predict"), 405, "another method")
    refused(client.post("/predict?model=zzz", files=files(1)), 404, "model=zzz: there are a, b")
    refused(client.post("/predict?overlay=yes", files=files(1)), 422, "overlay: ")
    refused(client.post("/mark", files=files(1)), 422, "truth: ")
    refused(client.post("/mark?truth=../bad", files=files(1)), 422, "truth: ")


def test_other_sites_are_kept_out(client: httpx.Client) -> None:
    host = client.base_url.netloc.decode()
    refused(client.get("/models", headers={"host": "evil.example"}), 421, "localhost")
    refused(client.get("/models", headers={"host": "127.0.0.1.evil.example"}), 421, "localhost")
    for origin in ("http://evil.example", "null", f"http://x{host}"):
        refused(client.post("/predict", files=files(1), headers={"origin": origin}), 403, "other sites")
    port = host.split(":")[1]
    for name in (host, f"localhost:{port}", f"[::1]:{port}"):
        answer = client.post("/predict", files=files(1), headers={"host": name, "origin": f"http://{name}"})
        assert answer.status_code == 200


def test_too_much(client: httpx.Client) -> None:
    refused(client.post("/predict", content=bytes(2**20 + 1)), 413, "a request may have 1 MiB")
    refused(client.post("/predict", content=(bytes(2**16) for _ in range(40))), 413, "a request may have 1 MiB")
    refused(client.post("/predict", content=bytes(2**20)), 422, "not an image")


def received(connection: socket.socket) -> bytes:
    """All of an answer whose connection is closed after it."""
    said = b""
    while not said.endswith(b"}") and (more := connection.recv(4000)):
        said += more
    return said


def test_a_full_queue_says_when_to_ask_again(tmp_path: Path) -> None:
    detector = Brightness()
    with served(tmp_path, detector, queue=2) as (address, server), httpx.Client(trust_env=False) as client:
        detector.hold.clear()
        with socket.create_connection(tuple(address[7:].split(":"))) as waiting:  # type: ignore[arg-type]
            body = picture(3)
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            waiting.sendall(head.encode() + body)
            until(lambda: server.services["a"].waiting == 1)
            answer = client.post(f"{address}/predict", files=files(1, 2))
            refused(answer, 429, "2 images are waiting")
            assert answer.headers["retry-after"] == "1"
        until(lambda: server.services["a"].waiting == 0)  # its client has left: its place is free
        detector.hold.set()
        assert client.post(f"{address}/predict", files=files(1)).status_code == 200


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    options = {"token": "open-sesame"}
    with served(tmp_path, Brightness(), **options) as (address, _), httpx.Client(base_url=address) as client:
        for path in ("/models", "/history", "/metrics", "/openapi.json"):
            refused(client.get(path), 401, "Authorization: Bearer TOKEN")
        for given in ("Bearer wrong-word", "open-sesame", "Basic open-sesame", "Bearer", "Bearer open-sesam\xe9"):
            refused(
                client.post("/predict", files=files(1), headers={"authorization": given.encode("latin-1")}), 401, "give"
            )
        assert client.get("/").status_code == client.get("/health").status_code == 200
        right = {"authorization": "Bearer open-sesame"}
        assert client.post("/predict", files=files(1), headers=right).status_code == 200


def test_a_body_that_does_not_come(tmp_path: Path) -> None:
    with served(tmp_path, Brightness()) as (address, server):
        server.app.body_seconds = 0.3
        with socket.create_connection(tuple(address[7:].split(":")), timeout=20) as slow:  # type: ignore[arg-type]
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
            said = received(slow)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"did not come in 0.3 s" in said
        assert server.app.held == 0


def test_it_ends_while_a_batch_is_being_scored(tmp_path: Path) -> None:
    detector = Brightness()
    with served(tmp_path, detector) as (address, server):
        detector.hold.clear()
        with socket.create_connection(tuple(address[7:].split(":")), timeout=20) as waiting:  # type: ignore[arg-type]
            body = picture(3)
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            waiting.sendall(head.encode() + body)
            until(lambda: server.services["a"].waiting == 1)
            began = time.monotonic()
            server.stop()
            said = received(waiting)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2]) == {"error": "the server is being stopped"}
        assert time.monotonic() - began < 15  # of the two seconds that it has, on a busy machine
        detector.hold.set()


def test_a_threshold_that_no_score_reaches_is_no_number(tmp_path: Path) -> None:
    with served(tmp_path, Brightness(float("inf"), map_threshold=float("inf"))) as (address, _):
        answer = httpx.post(f"{address}/predict?overlay=layers", files=files(200), trust_env=False)
        assert answer.status_code == 200
        assert "threshold" not in answer.json()["results"][0]
        assert answer.json()["results"][0]["anomalous"] is False
        assert "threshold" not in httpx.get(f"{address}/models", trust_env=False).json()["models"][0]

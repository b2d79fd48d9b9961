"""The server's page in a real browser: an image is dropped, its decision seen and judged, a reload forgets nothing."""

import base64
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly_lib.serving.app import Server
from tests.support.browser import Browser, started
from tests.support.serving import Brightness, picture, served

NASTY = "<img src=x onerror=document.title='broken'>&amp;.png"
DROP = """(files => {
    const transfer = new DataTransfer();
    for (const [name, data] of files)
        transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type: "image/png"}));
    const drop = new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
    document.getElementById("drop").dispatchEvent(drop);
})"""


class Page(Browser):
    """The server's page on the screen."""

    ready = "(document.body.dataset.ready === 'yes' || document.getElementById('lock').open)"

    def drop(self, *files: tuple[str, bytes]) -> None:
        """Drop files on the page and wait until all are answered."""
        self.run(f"{DROP}({json.dumps([[name, base64.b64encode(data).decode()] for name, data in files])})")
        self.wait("document.body.dataset.waiting === '0'")

    def text(self, name: str) -> str:
        found: str = self.run(f"document.getElementById('{name}').textContent")
        return found

    def click(self, name: str) -> None:
        self.run(f"document.getElementById('{name}').click()")

    def press(self, key: str) -> None:
        self.run(
            f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true}}))"
        )

    def names(self) -> list[str]:
        found: list[str] = self.run("[...document.querySelectorAll('#history .name')].map(e => e.textContent)")
        return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    yield from started(Page, tmp_path_factory.mktemp("profile"))


@pytest.fixture
def running(page: Page, tmp_path: Path) -> Iterator[tuple[str, Server]]:
    with served(tmp_path, Brightness(), Brightness(None)) as (address, server):
        page.own, page.problems = ("data:", "blob:", address), []
        yield address, server
        page.send("Page.navigate", {"url": "about:blank"})


def marked(server: Server) -> list[tuple[str, str]]:
    with server.records.marks.table.open(newline="") as stream:
        return [(row["name"], row["truth"]) for row in csv.DictReader(stream)]


def test_an_image_is_dropped_judged_and_remembered(page: Page, running: tuple[str, Server]) -> None:
    address, server = running
    page.open(f"{address}/")
    page.drop((NASTY, picture(230)))
    assert page.text("verdict") == "anomalous"
    assert page.names() == [NASTY]
    assert "0.9020" in page.text("facts")
    assert page.run("document.title") == "a - anomaly_lib"
    page.wait("[...document.querySelectorAll('#stage img')].every(i => i.naturalWidth === 8)")
    layers = page.run("[...document.querySelectorAll('#stage img')].map(i => i.className)")
    assert layers == ["picture", "heat", "region"]
    page.set("opacity", 20)
    assert page.run("getComputedStyle(document.querySelector('#stage .heat')).opacity") == "0.2"
    assert page.text("yes") == "Right: it is bad"
    page.click("no")
    page.wait("document.getElementById('told').textContent === 'Marked as good.'")
    assert marked(server) == [(NASTY, "good")]
    page.open(f"{address}/")  # all of this is the server's
    assert page.names() == [NASTY]
    assert page.run("document.querySelector('#history .mark').textContent") == "good"
    assert page.text("marked") == "marked: 1 good, 0 bad"
    page.run("document.querySelector('#history button').click()")
    assert page.run("document.getElementById('ask').hidden")
    assert page.problems == []


def test_a_drift_is_a_line_of_the_page(page: Page, running: tuple[str, Server]) -> None:
    address, server = running
    page.open(f"{address}/")
    assert page.run("document.getElementById('drift').hidden")
    page.drop(*((f"{number}.png", picture(120 + number % 4, (12 + number, 10))) for number in range(40)))
    for _ in range(2):
        assert page.text("drift") == server.watch.found["a"]
        assert not page.run("document.getElementById('drift').hidden")
        page.open(f"{address}/")
    page.set("model", "b")  # it decides nothing and is not watched
    page.run("document.getElementById('model').dispatchEvent(new Event('change'))")
    page.wait("document.getElementById('drift').hidden")
    assert page.problems == []


def test_many_images_and_the_keyboard(page: Page, running: tuple[str, Server]) -> None:
    address, server = running
    page.open(f"{address}/")
    page.drop(*((f"{level}.png", picture(level)) for level in (30, 60, 220)), ("note.png", b"no image"))
    assert sorted(page.names()) == ["220.png", "30.png", "60.png", "note.png"]
    assert page.text("count") == "3 images, 1 anomalous"
    page.run("[...document.querySelectorAll('#history button')].find(b => b.textContent.includes('note.png')).click()")
    assert page.text("verdict") == "refused"
    assert page.text("stage") == "note.png: unreadable image (not an image)"
    for _ in page.names():
        page.press("ArrowUp")
    first = page.names()[0]
    assert first in page.text("file")
    page.press("ArrowDown")
    second = page.names()[1]
    assert second in page.text("file")
    if second == "note.png":
        page.press("ArrowDown")
        second = page.names()[2]
    page.press("r")
    page.wait("document.getElementById('told').textContent.startsWith('Marked')")
    assert marked(server) == [(second, "bad" if second == "220.png" else "good")]
    page.press("h")
    assert page.run("document.getElementById('opacity').value") == "0"


def test_a_detector_without_a_decision_asks_which_it_is(page: Page, running: tuple[str, Server]) -> None:
    address, server = running
    page.open(f"{address}/")
    assert not page.run("document.getElementById('model').hidden")
    page.set("model", "b")
    page.wait("document.title === 'b - anomaly_lib'")
    page.drop(("x.png", picture(51)))
    assert page.text("verdict") == "score 0.2000"
    assert page.text("no") == "A bad part"
    page.click("no")
    page.wait("document.getElementById('told').textContent === 'Marked as bad.'")
    assert marked(server) == [("x.png", "bad")]
    assert page.problems == []


def test_the_camera(page: Page, running: tuple[str, Server]) -> None:
    address, _ = running
    page.open(f"{address}/")
    page.click("camera")
    page.wait("document.getElementById('watch').open && document.getElementById('video').videoWidth > 0")
    page.click("shoot")
    page.wait("document.querySelectorAll('#history li').length === 1")
    assert page.names()[0].startswith("camera-")
    assert page.text("verdict") == "normal"
    page.click("leave")
    page.wait("!document.getElementById('video').srcObject.active")  # its light goes out
    assert page.problems == []


def test_it_asks_for_the_token_and_keeps_it(page: Page, tmp_path: Path) -> None:
    options = {"token": "open-sesame"}
    with served(tmp_path, Brightness(), **options) as (address, _):
        page.own = ("data:", "blob:", address)
        page.open(f"{address}/")
        for word in ("not-the-word", "open-sesame"):
            page.wait("document.getElementById('lock').open")
            page.set("token", word)
            page.run("document.querySelector('#lock button').click()")
        page.wait("document.body.dataset.ready === 'yes'")
        page.drop(("x.png", picture(230)))
        assert page.text("verdict") == "anomalous"
        page.open(f"{address}/")
        page.wait("document.body.dataset.ready === 'yes'")
        assert page.names() == ["x.png"]
        page.send("Page.navigate", {"url": "about:blank"})

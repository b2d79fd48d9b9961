"""The HTML report in a real browser: it opens, filters, sorts, slides and compares, without network or errors."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_lib.metrics.rates import counted_rate
from anomaly_lib.viz.report import ReportRun, report_image, script_json, tile_size, write_report

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--window-size=1300,900",
]  # fmt: skip
NASTY = "good/</script><img src=x onerror=\"document.title='broken'\">&amp;.png"


class Browser:
    """Chromium driven over its debugging pipe: JSON messages ended by a zero byte, on descriptors 3 and 4."""

    def __init__(self, executable: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", shell, executable, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number, self.problems = b"", 0, []
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable", {})

    def send(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 16)
            assert chunk, "the browser has died"
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(message["params"])
        url = message.get("params", {}).get("request", {}).get("url", "")
        if message.get("method") == "Network.requestWillBeSent" and not url.startswith(("data:", "file:")):
            self.problems.append(message["params"])
        return message

    def open(self, page: Path, fragment: str = "") -> None:
        self.send("Page.navigate", {"url": "about:blank"})
        self.send("Page.navigate", {"url": page.resolve().as_uri() + fragment})
        for _ in range(400):
            if self.run("document.readyState === 'complete' && !!document.querySelector('#counts b')"):
                return
            time.sleep(0.05)
        raise AssertionError("the page did not load")

    def run(self, script: str) -> Any:
        answer = self.send("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def set(self, element: str, value: Any) -> None:
        """What a user's hand on a control does."""
        self.run(
            f"(() => {{ const e = document.getElementById('{element}'); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()"
        )

    def counts(self) -> dict[str, int]:
        return {k: int(v) for k, v in self.run("({...document.getElementById('counts').dataset})").items()}

    def paths(self) -> list[str]:
        return self.run("[...document.querySelectorAll('figure')].map(f => f.dataset.path)")

    def screenshot(self, path: Path) -> None:
        import base64

        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", {})["data"]))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def demo_run(name: str, count: int, seed: int) -> ReportRun:
    """`count` samples with scores 0 .. 1; every third is anomalous; two classes."""
    rng, size = np.random.default_rng(seed), tile_size(count)
    picture = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:20, 10:30] = True
    images = []
    for i in range(count):
        label, group = int(i % 3 == 0), "ab"[i % 2]
        path = NASTY if i == 1 else f"{group}/{i:05d}.png"
        truth = mask if label else None
        score = float(rng.random() * 0.7 + 0.3 * label)
        images.append(
            report_image(
                path, group, label, score, size=size, defect="crack" if label else "good",
                image=picture, score_map=rng.random((20, 20)), mask=truth, region=mask.T if score > 0.6 else None,
                p_value=(i + 0.37) / 40,
            )
        )  # fmt: skip
    facts, words = {"seed": seed}, "anomalous from 0.5 on (by hand)"
    return ReportRun(name, images, threshold=0.5, promised=0.05, decision=words, facts=facts, link="run.json")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [demo_run("first <b>", 30, 0), demo_run("second", 30, 1)]
    return write_report(
        tmp_path_factory.mktemp("report"), runs, title="Report <i>& more", columns=["class", "auroc"],
        rows=[["a", "0.900"], ["b", "0.950"]], notes=["oracle: chosen on the test split"], tile=192,
    )  # fmt: skip


def expected(run: ReportRun, threshold: float, group: str | None = None) -> dict[str, int]:
    chosen = [i for i in run.images if group in (None, i.group)]
    cells = [(i.score >= threshold, i.label > 0) for i in chosen]
    return {
        "tp": cells.count((True, True)), "fp": cells.count((True, False)),
        "fn": cells.count((False, True)), "tn": cells.count((False, False)),
    }  # fmt: skip


def test_script_json_cannot_leave_its_element() -> None:
    text = script_json({"x": NASTY + "\u2028"})
    assert "<" not in text
    assert json.loads(text)["x"] == NASTY + "\u2028"


def test_thresholds_count_live(browser: Browser, page: Path) -> None:
    run = demo_run("first", 30, 0)
    browser.open(page)
    assert browser.counts() == expected(run, 0.5)
    browser.set("exact", 0.8)
    assert browser.counts() == expected(run, 0.8)
    browser.set("threshold", 0)  # the slider's left end: the lowest score, so everything is flagged
    assert browser.counts() == expected(run, 0.0)
    browser.run("[...document.querySelectorAll('#groups button')].find(b => b.textContent === 'b').click()")
    assert browser.counts() == expected(run, 0.0, "b")


def test_it_opens_at_the_stored_threshold_with_promise_and_rates(browser: Browser, page: Path) -> None:
    run = demo_run("first", 30, 0)
    wanted = expected(run, 0.5)
    alarms = counted_rate(wanted["fp"], wanted["fp"] + wanted["tn"])
    found = counted_rate(wanted["tp"], wanted["tp"] + wanted["fn"])
    browser.open(page)
    said = "document.getElementById('counts').textContent"
    assert f"false alarms {alarms} (promised 5.0%)" in browser.run(said)
    assert f"found {found}" in browser.run(said)
    assert "anomalous from 0.5 on (by hand)" in browser.run("document.getElementById('facts').textContent")
    assert browser.run("document.getElementById('stored').hidden")
    browser.set("exact", 0.8)  # the promise belongs to the stored threshold
    assert "promised" not in browser.run(said)
    browser.run("document.getElementById('stored').click()")
    assert f"false alarms {alarms} (promised 5.0%)" in browser.run(said)


def test_regions_and_p_values_stand_with_the_images(browser: Browser, page: Path) -> None:
    run = {image.path: image for image in demo_run("first", 30, 0).images}
    browser.open(page)
    tiles = browser.run(
        "[...document.querySelectorAll('figure')]"
        ".map(f => [f.dataset.path, f.textContent, f.querySelectorAll('.region').length])"
    )
    for path, text, regions in tiles:
        assert f" p {run[path].p_value:#.2g}" in text
        assert regions == (run[path].score > 0.6)
    browser.run("document.getElementById('regions').click()")
    assert browser.run("getComputedStyle(document.querySelector('.region')).display") == "none"
    assert browser.run("getComputedStyle(document.querySelector('.truth')).display") == "block"


def test_filters_and_sorting(browser: Browser, page: Path) -> None:
    run = demo_run("first", 30, 0)
    browser.open(page)
    by_score = [i.path for i in sorted(run.images, key=lambda i: -i.score)]
    visible = browser.paths()
    assert visible == by_score[: len(visible)]
    browser.set("sort", "score+")
    assert browser.paths()[:5] == by_score[::-1][:5]
    browser.set("outcome", "miss")
    misses = {i.path for i in run.images if i.label and i.score < 0.5}
    assert set(browser.paths()) == misses
    browser.set("outcome", "all")
    browser.set("find", "0001")
    assert set(browser.paths()) == {i.path for i in run.images if "0001" in i.path}
    browser.set("find", "no such name")
    assert browser.paths() == []
    assert browser.run("document.getElementById('empty').hidden") is False


def test_heat_opacity_truth_and_names(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.set("opacity", 0)
    assert browser.run("getComputedStyle(document.querySelector('.heat')).opacity") == "0"
    browser.run("document.getElementById('truth').click()")
    assert browser.run("getComputedStyle(document.querySelector('.truth')).display") == "none"
    browser.set("find", "onerror")
    assert browser.paths() == [NASTY]
    assert browser.run("document.title") == "Report <i>& more"
    assert browser.run("document.querySelector('figure').textContent.includes('</script>')")
    assert browser.run("document.querySelectorAll('#table tr').length") == 3
    assert browser.run("document.querySelector('#facts a').getAttribute('href')") == "run.json"
    assert browser.run("[...document.images].every(i => i.naturalWidth > 0)")


def test_two_runs_side_by_side(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.set("other", 1)
    assert browser.run(
        "[...document.querySelectorAll('figure')].every(f => f.querySelectorAll('.picture').length === 2)"
    )
    browser.run("document.querySelectorAll('#runs button')[1].click()")
    assert browser.counts() == expected(demo_run("second", 30, 1), 0.5)


def test_a_link_restores_the_view(browser: Browser, page: Path) -> None:
    run = demo_run("first", 30, 0)
    browser.open(page, "#group=a&outcome=alarm&threshold=0.4")
    assert browser.counts() == expected(run, 0.4, "a")
    assert set(browser.paths()) == {i.path for i in run.images if i.group == "a" and not i.label and i.score >= 0.4}
    assert browser.problems == []


@pytest.mark.slow
def test_five_thousand_images_stay_smooth(browser: Browser, tmp_path: Path) -> None:
    large = write_report(tmp_path, [demo_run("large", 5000, 0)], tile=tile_size(5000))
    assert large.stat().st_size < 40e6
    started = time.monotonic()
    browser.open(large)
    assert time.monotonic() - started < 20
    assert len(browser.paths()) < 400  # only what is on screen exists
    browser.run("document.getElementById('scroll').scrollTop = 1e9")
    settled = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    browser.run(settled)
    assert 0 < len(browser.paths()) < 400
    slide = """(() => {
        const slider = document.getElementById('threshold'), started = performance.now();
        for (let i = 0; i < 10; i++) { slider.value = i * 100; slider.dispatchEvent(new Event('input')); }
        return (performance.now() - started) / 10;
    })()"""
    assert browser.run(slide) < 250, "milliseconds a threshold step on a loaded machine (about 20 on an idle one)"
    assert browser.problems == []

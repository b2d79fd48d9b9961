"""The HTML report in a real browser: it opens, filters, sorts, slides and compares, without network or errors."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from anomaly_lib.metrics.rates import counted_rate
from anomaly_lib.viz.report import ReportRun, report_image, script_json, tile_size, write_report
from tests.support.browser import Browser, started

NASTY = "good/</script><img src=x onerror=\"document.title='broken'\">&amp;.png"


class ReportBrowser(Browser):
    """A report on the screen."""

    ready = "!!document.querySelector('#counts b')"

    def counts(self) -> dict[str, int]:
        return {k: int(v) for k, v in self.run("({...document.getElementById('counts').dataset})").items()}

    def paths(self) -> list[str]:
        return self.run("[...document.querySelectorAll('figure')].map(f => f.dataset.path)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportBrowser]:
    yield from started(ReportBrowser, tmp_path_factory.mktemp("profile"))


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


def test_thresholds_count_live(browser: ReportBrowser, page: Path) -> None:
    run = demo_run("first", 30, 0)
    browser.open(page)
    assert browser.counts() == expected(run, 0.5)
    browser.set("exact", 0.8)
    assert browser.counts() == expected(run, 0.8)
    browser.set("threshold", 0)  # the slider's left end: the lowest score, so everything is flagged
    assert browser.counts() == expected(run, 0.0)
    browser.run("[...document.querySelectorAll('#groups button')].find(b => b.textContent === 'b').click()")
    assert browser.counts() == expected(run, 0.0, "b")


def test_it_opens_at_the_stored_threshold_with_promise_and_rates(browser: ReportBrowser, page: Path) -> None:
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


def test_regions_and_p_values_stand_with_the_images(browser: ReportBrowser, page: Path) -> None:
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


def test_filters_and_sorting(browser: ReportBrowser, page: Path) -> None:
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


def test_heat_opacity_truth_and_names(browser: ReportBrowser, page: Path) -> None:
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


def test_the_keyboard_goes_from_image_to_image(browser: ReportBrowser, page: Path) -> None:
    by_score = [i.path for i in sorted(demo_run("first", 30, 0).images, key=lambda i: -i.score)]
    browser.open(page)

    def press(key: str, on: str = "document.activeElement") -> str | None:
        browser.run(f"{on}.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))")
        found: str | None = browser.run("document.activeElement.dataset.path || null")
        return found

    assert [press("ArrowRight") for _ in range(3)] == by_score[:3]
    assert press("ArrowLeft") == by_score[1]
    columns = browser.run("columns")
    assert press("ArrowDown") == by_score[1 + columns]
    assert press("End") == by_score[-1]  # far below: it is drawn and scrolled to
    box = "document.getElementById('scroll').getBoundingClientRect()"
    assert browser.run(f"document.activeElement.getBoundingClientRect().bottom <= {box}.bottom + 1")
    assert press("ArrowDown") == by_score[-1]
    assert press("Home") == by_score[0]
    assert browser.run(f"document.activeElement.getBoundingClientRect().top >= {box}.top")
    press("h")
    assert browser.run("getComputedStyle(document.querySelector('.heat')).opacity") == "0"
    press("r")
    assert browser.run("getComputedStyle(document.querySelector('.region')).display") == "none"
    browser.run("document.getElementById('find').focus()")
    assert press("ArrowRight") is None  # the field's own
    assert browser.problems == []


def test_two_runs_side_by_side(browser: ReportBrowser, page: Path) -> None:
    browser.open(page)
    browser.set("other", 1)
    assert browser.run(
        "[...document.querySelectorAll('figure')].every(f => f.querySelectorAll('.picture').length === 2)"
    )
    browser.run("document.querySelectorAll('#runs button')[1].click()")
    assert browser.counts() == expected(demo_run("second", 30, 1), 0.5)


def test_a_link_restores_the_view(browser: ReportBrowser, page: Path) -> None:
    run = demo_run("first", 30, 0)
    browser.open(page, "#group=a&outcome=alarm&threshold=0.4")
    assert browser.counts() == expected(run, 0.4, "a")
    assert set(browser.paths()) == {i.path for i in run.images if i.group == "a" and not i.label and i.score >= 0.4}
    assert browser.problems == []


@pytest.mark.slow
def test_five_thousand_images_stay_smooth(browser: ReportBrowser, tmp_path: Path) -> None:
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

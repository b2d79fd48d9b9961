"""docs/manual/results.md says what the run folders say, and the README's marked part is renewed, nothing else."""

import importlib.util
import json
from pathlib import Path

import pytest

from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.errors import UserError
from anomaly_lib.systems.registry import SYSTEMS
from scripts.pages.shop_window import BEGIN, END, LEDGER, beside_others, real_categories

SPEC = importlib.util.spec_from_file_location("make_figures", Path(__file__).parents[3] / "scripts" / "make_figures.py")
assert SPEC is not None
assert SPEC.loader is not None
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)


def put_run(root: Path, name: str, system: str, **changes) -> None:
    record = {
        "system": system, "status": "finished", "args": {"select": "last"}, "seed": 7, "seconds": 12.6,
        "machine": "x86_64", "threads": 2, "gpu": None, "git_commit": "abc123",
        "metrics": {"image_auroc": 0.91234, "threshold": 0.5}, "remarks": [],
        "argv": ["--fusion-mode", "harmonic", "--output-dir", "/somewhere/else", "--data-path=/private"],
    }  # fmt: skip
    (root / name).mkdir(parents=True)
    (root / name / "run.json").write_text(json.dumps(record | changes))


def test_page_and_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, docs, readme = tmp_path / "runs", tmp_path / "docs", tmp_path / "README.md"
    put_run(runs, "demo-all-k1-cls", "promptad")
    put_run(runs, "oracle-cls", "promptad", remarks=["oracle: best epoch on test", "random weights: audio-net"])
    put_run(runs, "half", "promptad", status="interrupted")
    put_run(runs, "heard", "weld", remarks=["random weights: audio-net"])
    put_run(runs, "no-net", "weld")
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def draw(run, folder: Path) -> None:
        run.figures = [folder / f"{run.folder.name}_overlays.png"]

    monkeypatch.setattr(SCRIPT, "draw_run", draw)
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    report = {"machine": {"commit": "f00d"}, "search": {"ratio": 4.5, "seconds": 2.0}, "runs": [{"times faster": 71}]}
    (benchmarks / "bank.json").write_text(json.dumps(report))
    sides = {"here": {"image_auroc": 0.9, "pixel_auroc": 0.8, "aupro": 0.7}}
    row = {"category": "real/weld", "model": "padim", "coreset_ratio": None, "size": 224, "commit": "beef"} | sides
    rows = [row | {"seed": seed} for seed in (0, 1)]
    (benchmarks / "real_detectors.json").write_text(json.dumps({"rows": rows}))
    argv = ["--runs", str(runs), "--docs", str(docs), "--readme", str(readme), "--only", "results"]
    argv += ["--benchmarks", str(benchmarks)]
    assert SCRIPT.main(argv) == 0
    page = (docs / "manual" / "results.md").read_text()
    assert "| demo-all-k1-cls | 0.912 | - | 7 | 13 | x86_64, 2 threads | abc123 |" in page
    assert "oracle: best epoch on test, random weights: audio-net" in page
    assert "half" not in page
    for name, remark in (("heard", "random weights: audio-net"), ("no-net", "-")):
        assert f"| {name} | 0.912 | {remark} | 7 |" in page
    assert "`--fusion-mode harmonic`" in page
    assert "/somewhere" not in page
    assert "/private" not in page
    assert "](../figures/demo-all-k1-cls_overlays.png)" in page
    assert "| bank | search / ratio | 4.50 | f00d |" in page
    assert "| bank | runs / 0 / times faster | 71.00 | f00d |" in page
    assert "| real/weld | padim | here (2) | 90.00 ± 0.00 | 80.00 ± 0.00 | 70.00 ± 0.00 |" in page
    assert "seconds |" not in page.split("## Benchmarks")[1]
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| promptad | demo-all-k1-cls | image_auroc 0.912 | abc123 |" in text
    assert "oracle-cls |" not in text  # the whole list stands on the page
    assert SCRIPT.main(argv) == 0  # a second time changes nothing
    assert readme.read_text() == text


def test_shop_window_says_what_the_files_say(tmp_path: Path) -> None:
    cells = {("a/x", 0): 0.9, ("a/x", 1): 0.8, ("b/y", 0): 0.7, ("drawn", 0): 0.1}
    rows = [
        {"method": "fewshot", "class": name, "k": "1", "seed": seed, "image_auroc": value}
        for (name, seed), value in cells.items()
    ]
    (tmp_path / LEDGER).write_text(json.dumps({"machine": {"git_commit": "c0de"}, "rows": rows}))
    sides = {"here": {"image_auroc": 0.9}, "anomalib": {"image_auroc": 0.8}}
    peers = [
        {"model": "padim", "category": name, "seed": 0, "coreset_ratio": None, "size": 224} | sides
        for name in ("a/x", "b/y")
    ]
    peers.append({"model": "patchcore", "category": "a/x", "seed": 0, "coreset_ratio": 0.1, "size": 128} | sides)
    peers.append(
        {"model": "draem", "category": "a/x", "seed": 0, "coreset_ratio": None, "size": 64, "widths": [8, 4]} | sides
    )
    (tmp_path / "real_detectors.json").write_text(json.dumps({"rows": peers}))
    said = real_categories(tmp_path)
    assert "| fewshot | 77.5 | not measured | not measured |" in said  # 0.85 and 0.70; not the drawn
    assert "| padim: here / anomalib 2.7 (x, y) | - | - | 90.0 / 80.0 |" in said
    assert "| patchcore, 10 % of the patches, 128 px: here / anomalib 2.7 (x) | - | - | 90.0 / 80.0 |" in said
    assert "draem" not in said  # narrowed networks say nothing of the method
    report = {"machine": {"commit": "f00d"}, "coreset": {"ratio": 153.04}}
    (tmp_path / "memory_bank.json").write_text(json.dumps(report))
    (tmp_path / "detect.json").write_text(json.dumps({"machine": {"commit": "f00d"}}))  # measured in part
    assert beside_others(tmp_path).splitlines()[2:] == ["| picks of a coreset | anomalib 2.7 | 153 | f00d |"]


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train something first"):
        SCRIPT.finished_runs(tmp_path / "none")
    with pytest.raises(UserError, match="no finished run"):
        SCRIPT.finished_runs(tmp_path)


def test_a_run_is_drawn_from_its_scores(tmp_path: Path) -> None:
    write_demo(tmp_path / "data", categories=["grid"], size=64, train=3, test_good=3, per_defect=1)
    options = {"dataset": "mvtec", "data_path": str(tmp_path / "data"), "task": "seg"}
    result = SYSTEMS["promptad"].train(SYSTEMS["promptad"].tiny(output_dir=str(tmp_path / "runs" / "one"), **options))
    docs, readme = tmp_path / "docs", tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}")
    argv = ["--runs", str(tmp_path / "runs"), "--docs", str(docs), "--readme", str(readme), "--only", "results"]
    assert SCRIPT.main(argv) == 0
    assert sorted(path.name for path in (docs / "figures").iterdir()) == ["one_overlays.png", "one_training.png"]
    page = (docs / "manual" / "results.md").read_text()
    assert "![one_overlays](../figures/one_overlays.png)" in page
    assert f"{result.metrics['image_auroc']:.3f}" in page
    assert "random weights: tiny-clip" in page
    assert "![one_overlays](docs/figures/one_overlays.png)" in readme.read_text()

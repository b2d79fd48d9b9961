"""The commands of the HDMAP template on synthetic maps, small."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import anomaly_lib
from anomaly_lib.errors import UserError
from anomaly_lib.systems.detectors.fitting import make_optimizer
from anomaly_lib.systems.detectors.hdmap import experiment_utils
from anomaly_lib.systems.detectors.hdmap.analysis import analyze, collect, paired_tests, summary_rows
from anomaly_lib.systems.detectors.hdmap.conditions import (
    args_of,
    extract_target_domains_from_config,
    image_size_of,
    load_experiment_conditions,
    training_names,
    values_of,
)
from anomaly_lib.systems.detectors.hdmap.demo_maps import write_hdmap_demo
from anomaly_lib.systems.detectors.hdmap.experiment import run_condition
from anomaly_lib.systems.detectors.hdmap.experiment_utils import (
    create_multi_domain_datamodule,
    evaluate_source_domain,
    evaluate_target_domains,
    extract_training_info,
    transfer_grade,
)
from anomaly_lib.systems.detectors.hdmap.script_options import ScriptArgs

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "hdmap"
MODELS = ("patchcore", "padim", "reverse_distillation", "draem", "draem_sevnet")
QUICK = ("patchcore", "draem_sevnet")
SMALL = {
    "image_size": "32x96", "max_epochs": 1, "figures": False, "target_domains": ["domain_B", "domain_C"],
    "source_domain": "domain_A", "early_stopping_patience": 3,
}  # fmt: skip


def script(name):
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conditions(folder, *configs):
    path = folder / "conditions.json"
    content = [{"name": f"small_{i}", "description": "small", "config": SMALL | c} for i, c in enumerate(configs)]
    path.write_text(json.dumps({"experiment_conditions": content}))
    return path


@pytest.mark.parametrize("model", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in MODELS])
def test_training_script_of_every_model(model, tmp_path, capsys):
    main = script(f"multi_domain_hdmap_{model}-training").main
    assert main(["--get-experiment-count"]) == 0
    shipped = load_experiment_conditions(SCRIPTS / f"multi_domain_hdmap_{model}-exp_condition.json")
    assert capsys.readouterr().out.strip() == str(len(shipped))
    for condition in shipped:
        values = values_of(condition, model)  # every name in the file is an option that this model reads
        assert not training_names(values)
        full = args_of(values | {"scale": "full"})
        assert {name: getattr(full, name) for name in values} == values
    file = conditions(tmp_path, {})
    flags = ["--gpu-id", "0", "--experiment-id", "0", "--log-dir", str(tmp_path / "logs"), "--conditions", str(file)]
    assert main(flags) == 0
    result = json.loads((tmp_path / "logs" / "result_exp_00_small_0_gpu0.json").read_text())
    assert result["status"] == "success"
    assert set(result["target_results"]) == {"domain_B", "domain_C"}
    mean = sum(r["image_AUROC"] for r in result["target_results"].values()) / 2
    assert result["avg_target_auroc"] == pytest.approx(mean)
    analysis = result["analysis"]
    assert analysis["transfer_ratio"] == pytest.approx(mean / result["source_results"]["test_image_AUROC"])
    assert analysis["transfer_grade"] == transfer_grade(analysis["transfer_ratio"])
    assert (result["best_checkpoint"] is None) == (model in ("patchcore", "padim"))
    target = result["target_results"]["domain_B"]
    threshold = result["source_results"]["source_threshold"]["threshold"]
    assert target["source_threshold"]["threshold"] == threshold  # one threshold, set on the source
    assert target["oracle"]["f1_max"] >= target["image_F1Score"]
    assert (Path(result["experiment_path"]) / "analysis" / "target_domain_B" / "test_results.csv").is_file()
    capsys.readouterr()
    assert main(flags) == 0
    assert "already done" in capsys.readouterr().out

    detector = anomaly_lib.load(result["checkpoint"])
    data = create_multi_domain_datamodule(
        source_domain="domain_A", target_domains=["domain_B", "domain_C"], image_size="32x96", num_workers=2, seed=0
    )
    again = evaluate_target_domains(
        detector.model, detector, data, result["checkpoint"], tmp_path / "again", ["domain_B"], type(data), True
    )
    assert set(again) == {"domain_B"}
    assert again["domain_B"]["image_AUROC"] == pytest.approx(target["image_AUROC"])
    assert len(list((tmp_path / "again" / "visualize" / "target_domains" / "domain_B" / "fault").glob("*.png")))
    source = evaluate_source_domain(model=detector.model, engine=detector, datamodule=data, checkpoint_path=None)
    assert source["image_F1Score"] == result["source_results"]["image_F1Score"]
    assert extract_training_info(detector) == result["training_info"]
    assert result["notes"][:2] == ["synthetic maps", "demo scale: small networks and maps, few epochs"]


def test_a_failed_condition_says_so(tmp_path, capsys):
    main = script("multi_domain_hdmap_draem-training").main
    file = conditions(tmp_path, {"source_domain": "domain_B", "target_domains": ["domain_B"]}, {"max_epoch": 3})
    for number in (0, 1):
        flags = ["--gpu-id", "2", "--experiment-id", str(number), "--log-dir", str(tmp_path), "--conditions", str(file)]
        assert main(flags) == 1
        result = json.loads((tmp_path / f"result_exp_0{number}_small_{number}_gpu2.json").read_text())
        assert result["status"] == "failed"
        assert result["error"]
        assert result["source_results"] == {}
    assert "unknown config name 'max_epoch'" in result["error"]
    assert main(["--gpu-id", "0", "--experiment-id", "9", "--log-dir", str(tmp_path), "--conditions", str(file)]) == 2
    assert "conditions 0..1" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--conditions", str(tmp_path / "no.json"), "--get-experiment-count"]) == 2


def test_the_template_s_import_block():
    """Exactly the thirteen names of the template, importable as it writes them."""
    from_script = script("experiment_utils")
    names = {
        "cleanup_gpu_memory", "setup_warnings_filter", "setup_experiment_logging", "extract_training_info",
        "organize_source_domain_results", "evaluate_target_domains", "save_experiment_results",
        "create_experiment_visualization", "create_multi_domain_datamodule", "evaluate_source_domain",
        "load_experiment_conditions", "analyze_experiment_results", "extract_target_domains_from_config",
    }  # fmt: skip
    assert set(experiment_utils.__all__) == names
    assert all(callable(getattr(from_script, name)) for name in names)


def test_helpers_take_the_template_s_arguments(tmp_path):
    """The rest of them as the template calls them; training and evaluation are in the test of every model."""
    helpers = script("experiment_utils")
    shipped = helpers.load_experiment_conditions("multi_domain_hdmap_padim-exp_condition.json")  # beside the helpers
    assert shipped == load_experiment_conditions(SCRIPTS / "multi_domain_hdmap_padim-exp_condition.json")
    for name in ("good", "fault"):
        assert not helpers.organize_source_domain_results(tmp_path / "theirs", tmp_path / "ours", "domain_A", None)
        (tmp_path / "theirs" / "images" / name).mkdir(parents=True)
        (tmp_path / "theirs" / "images" / name / "0.png").write_bytes(b"x")
    assert helpers.organize_source_domain_results(
        sevnet_viz_path=tmp_path / "theirs", results_base_dir=tmp_path / "ours", source_domain="domain_A",
        specific_version_path=tmp_path / "v0",
    )  # fmt: skip
    assert (tmp_path / "v0" / "visualize" / "source_domain" / "fault" / "0.png").read_bytes() == b"x"
    source = {"image_AUROC": 0.8, "image_F1Score": 0.7}
    targets = {"domain_B": {"image_AUROC": 0.6, "image_F1Score": 0.5}}
    info = {"last_trained_epoch": 3, "early_stopped": False, "best_val_auroc": 0.8}
    analysis = helpers.analyze_experiment_results(source, targets, info, shipped[0], "PaDiM")
    assert (analysis["model_type"], analysis["transfer_ratio"]) == ("PaDiM", pytest.approx(0.75))
    place = helpers.create_experiment_visualization(
        "one", "PaDiM", str(tmp_path), "domain_A", ["domain_B"], source_results=source, target_results=targets
    )
    written = json.loads((place / "experiment_info.json").read_text())
    assert written["results_summary"] == {"source_results": source, "target_results": targets}
    logger = helpers.setup_experiment_logging(str(tmp_path / "log.txt"), "one")
    result = {"experiment_name": "one", "status": "success", "avg_target_auroc": 0.6}
    path = helpers.save_experiment_results(result, "result_exp_00_one_gpu0.json", str(tmp_path), logger, "PaDiM")
    assert json.loads(path.read_text()) == {"model_type": "PaDiM"} | result
    assert "0.6" in (tmp_path / "log.txt").read_text()


def test_every_condition_gets_the_weights_of_its_backbone(tmp_path):
    from scripts.hdmap.run_conditions import Args, jobs_of

    def flags(**options):
        jobs = jobs_of(Args(**options), tmp_path)
        words = {job.key["condition"]: list(job.argv) for job in jobs}
        return {n: w[w.index("--weights") + 1] if "--weights" in w else None for n, w in words.items()}, words

    named, words = flags(model="patchcore", weights=["resnet18=a.pth", "wide_resnet50_2=b.pth"], download=True)
    assert named["PatchCore_baseline"] == named["PatchCore_256"] == "b.pth"
    assert (named["PatchCore_resnet18"], named["PatchCore_resnet50"]) == ("a.pth", None)
    assert all("--download" in argv for argv in words.values())
    named = flags(model="padim", weights=["a.pth"])[0]
    assert named.pop("PaDiM_not_pretrained") is None  # its condition says random, and stays so
    assert set(named.values()) == {"a.pth"}
    with pytest.raises(UserError, match="BACKBONE=FILE"):
        Args(weights=["a.pth", "b.pth"])


def test_a_run_leaves_pictures_and_figures_of_every_domain_and_notes_its_scale(tmp_path):
    maps = str(write_hdmap_demo(tmp_path / "maps", train=4, test=3, seed=0))
    config = {"config": SMALL | {"figures": True}, "name": "small", "description": ""}
    options = ScriptArgs(log_dir=str(tmp_path / "logs"), data_path=maps, weights="random", scale="demo")
    result = run_condition(config, 0, "padim", options, tmp_path / "logs")
    assert result["status"] == "success", result["error"]
    assert "demo scale: small networks and maps, few epochs" in result["notes"]
    assert "synthetic maps" not in result["notes"]
    run = Path(result["experiment_path"])
    assert "demo scale: small networks and maps, few epochs" in json.loads((run / "run.json").read_text())["remarks"]
    for place, role in (("source_domain", "source_domain_A"), ("target_domains/domain_C", "target_domain_C")):
        for kind in ("good", "fault"):
            assert len(list((run / "visualize" / place / kind).glob("*.png"))) >= 2
        for name in ("roc_curve.png", "score_distributions.png", "test_results.csv"):
            assert (run / "analysis" / role / name).is_file()
    assert (run / "visualize" / "experiment_info.json").is_file()


def test_reverse_distillation_reads_lr_and_momentum():
    conditions = load_experiment_conditions(SCRIPTS / "multi_domain_hdmap_reverse_distillation-exp_condition.json")
    found = {c["name"]: args_of(values_of(c, "reverse_distillation") | {"scale": "full"}) for c in conditions}
    linear = torch.nn.Linear(2, 2)
    sgd = make_optimizer(linear, found["ReverseDistillation_sgd"]).param_groups[0]
    assert (sgd["lr"], sgd["momentum"]) == (0.01, 0.9)
    adam = [
        make_optimizer(linear, found[f"ReverseDistillation_{name}"]).param_groups[0]
        for name in ("baseline", "momentum_0.9")
    ]
    assert [group["betas"] for group in adam] == [(0.5, 0.999), (0.9, 0.999)]  # the first is the published one


def test_condition_files_of_both_shapes(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(
        """{
      // the template's shape
      "condition_1": {"name": "a b", "description": "a//b", /* inside */
        "config": {"source_domain": "domain_C", "image_size": [256, 128], "patch_width_range": [32, 64],}},
      "condition_2": {"config": {"target_domains": "domain_D"}},
    }""",
        encoding="utf-8",
    )
    first, second = load_experiment_conditions(path)
    assert first["name"] == "a b"
    assert first["description"] == "a//b"
    assert first["config"]["patch_width_range"] == (32, 64)
    assert second["name"] == "condition_2"
    assert extract_target_domains_from_config(first["config"]) == ["domain_B", "domain_C", "domain_D"]
    assert extract_target_domains_from_config(second["config"]) == ["domain_D"]
    automatic = {"source_domain": "domain_C", "target_domains": "auto"}
    assert extract_target_domains_from_config(automatic) == ["domain_A", "domain_B", "domain_D"]
    assert image_size_of("224x96") == [224, 96]
    assert image_size_of([5, 6]) == [5, 6]
    for text, message in (
        ('{"a": 1}', "expected"),
        ("{", "not valid JSON"),
        ('{"experiment_conditions": [{}]}', "needs"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_experiment_conditions(path)
    with pytest.raises(UserError, match="image_size"):
        image_size_of("large")


def test_grades():
    assert [transfer_grade(r) for r in (0.95, 0.9, 0.75, 0.2, 0.0)] == ["우수", "양호", "보통", "개선필요", "개선필요"]


def write_result(folder, name, source, targets, *, source_domain="domain_A", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "status": "success", "experiment_name": name, "model_type": "DRAEM", "source_domain": source_domain,
        "source_results": {"image_AUROC": source}, "avg_target_auroc": sum(targets.values()) / len(targets),
        "target_results": {d: {"image_AUROC": v} for d, v in targets.items()}, "options": {"seed": seed},
    }  # fmt: skip
    (folder / f"result_exp_00_{name}_gpu0.json").write_text(json.dumps(result))


def test_analysis_over_repeats(tmp_path):
    for repeat in range(4):
        write_result(tmp_path / str(repeat), "good", 0.9, {"domain_B": 0.8 + 0.01 * repeat, "domain_C": 0.6})
        write_result(tmp_path / str(repeat), "bad", 0.9, {"domain_B": 0.6 + 0.013 * repeat, "domain_C": 0.6})
    write_result(tmp_path / "x", "other_source", 0.7, {"domain_A": 0.5}, source_domain="domain_B")
    found = collect(tmp_path)
    rows = {row["experiment"]: row for row in summary_rows(found)}
    assert rows["good"]["repeats"] == 4
    assert rows["good"]["avg_target_auroc_mean"] == pytest.approx((0.7 + 0.705 + 0.71 + 0.715) / 4)
    assert rows["good"]["domain_B_std"] == pytest.approx(0.0129099, rel=1e-4)
    assert rows["good"]["transfer_ratio_mean"] == pytest.approx(0.7075 / 0.9)
    test = next(t for t in paired_tests(found) if {t["first"], t["second"]} == {"good", "bad"})
    assert abs(test["mean_difference"]) == pytest.approx(0.09775)
    assert test["t_test_p"] < 0.001
    assert test["t_test_p_holm"] >= test["t_test_p"]
    names = {path.name for path in analyze(tmp_path)}
    assert {"experiment_analysis_summary.csv", "paired_tests.csv", "transfer_matrix_DRAEM.png"} <= names
    with pytest.raises(UserError, match="no result_exp"):
        collect(SCRIPTS)


def shell(*words, **environment):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["bash", *map(str, words)], capture_output=True, text=True, env=variables, timeout=600, check=False
    )


def test_auto_runner_options(tmp_path):
    runner = SCRIPTS / "auto_experiment_runner.sh"
    words = "--script --results --interval --threshold --memory --wait --safety-wait --args --check-only"
    for option in [*words.split(), "--monitor-gpus", "--gpus", "--config"]:
        assert option in shell(runner, "-h").stdout
    assert shell(runner, "-c").returncode == 0
    assert shell(runner).returncode == 2
    assert shell(runner, "--bogus").returncode == 2
    assert shell(runner, "-s", tmp_path / "none.sh").returncode == 2
    job = tmp_path / "job.sh"
    job.write_text('echo "iteration $ITERATION $* on $GPUS by $CONFIG"; [ "$ITERATION" != 2 ]\n')
    flags = ["-r", tmp_path / "r", "-i", "1", "-t", "5", "-w", "2", "-a", "--flag", "--gpus", "0,2", "--config", "c"]
    got = shell(runner, "-s", job, *flags, "3")
    assert got.returncode == 1  # the second repeat failed, the third ran all the same
    summary = next((tmp_path / "r").glob("experiment_summary_*.txt")).read_text().split("\n")
    assert [line[-1:] for line in summary[:3]] == ["0", "1", "0"]
    assert "iteration 3 --flag on 0 2 by c" in next((tmp_path / "r").glob("auto_experiment_*.log")).read_text()


def test_auto_runner_waits_until_every_gpu_is_idle(tmp_path):
    """A stand-in for nvidia-smi: GPU 1 is busy by use, then by memory, then idle."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(
        """#!/usr/bin/env bash
n=$(( $(cat "$LOOKS" 2>/dev/null || echo 0) + 1 )); echo $n >"$LOOKS"
echo "0, 3, 900, 80000, 40"
case $n in 1) echo "1, 55, 900, 80000, 60";; 2) echo "1, 0, 2001, 80000, 50";; *) echo "1, 10, 2000, 80000, 41";; esac
"""
    )
    smi.chmod(0o755)
    job = tmp_path / "job.sh"
    job.write_text(f'cat "{tmp_path}/looks" >>"{tmp_path}/started" 2>/dev/null || echo 0 >>"{tmp_path}/started"\n')
    path = f"{smi.parent}:{os.environ['PATH']}"
    flags = ["-s", job, "-r", tmp_path / "r", "-i", "0", "--safety-wait", "0"]
    done = subprocess.run(
        ["bash", *map(str, [SCRIPTS / "auto_experiment_runner.sh", *flags, "2"])], capture_output=True, text=True,
        env={**os.environ, "PATH": path, "LOOKS": str(tmp_path / "looks")}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "started").read_text().split() == ["0", "3"]  # at once, then after the third look
    busy = shell(SCRIPTS / "auto_experiment_runner.sh", "-c", PATH=path, LOOKS=str(tmp_path / "again"))
    assert busy.stdout.strip().endswith("busy")
    one = shell(SCRIPTS / "auto_experiment_runner.sh", "-c", "-g", "0", PATH=path, LOOKS=str(tmp_path / "third"))
    assert one.stdout.strip().endswith("all idle")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_run_script_of_every_model(model, tmp_path):
    """The shipped conditions by the shipped script, as the automatic runner starts it; the first one only."""
    file = SCRIPTS / f"multi_domain_hdmap_{model}-exp_condition.json"
    name = load_experiment_conditions(file)[0]["name"]
    runner, job = SCRIPTS / "auto_experiment_runner.sh", SCRIPTS / f"multi_domain_hdmap_{model}-run.sh"
    flags = ["-r", tmp_path / "auto", "--config", file, "-a", f"--only {name} --log-dir {tmp_path / 'logs'}"]
    done = shell(runner, "-s", job, *flags, "1")
    assert done.returncode == 0, next((tmp_path / "auto").glob("*.log")).read_text()[-2000:]
    result = json.loads((tmp_path / "logs" / f"result_exp_00_{name}_gpu0.json").read_text())
    assert result["status"] == "success"
    assert len(result["target_results"]) == 3


@pytest.mark.slow
def test_runner_is_killed_and_repeats_nothing(tmp_path):
    """run.sh over three conditions, one of them impossible: killed once, started again."""
    file = conditions(
        tmp_path, {}, {"target_domains": ["domain_A"]}, {"source_domain": "domain_B", "target_domains": "auto"}
    )
    logs = tmp_path / "logs"
    command = [SCRIPTS / "multi_domain_hdmap_patchcore-run.sh", "--conditions", file, "--log-dir", logs]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(["bash", *map(str, command)], env=variables, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not list(logs.glob("result_exp_00_*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    written = next(logs.glob("result_exp_00_*.json")).stat().st_mtime_ns
    again = shell(*command)
    assert again.returncode == 1, again.stdout + again.stderr  # the impossible one failed ...
    status = {p.name[:13]: json.loads(p.read_text())["status"] for p in logs.glob("result_exp_*.json")}
    assert status == {"result_exp_00": "success", "result_exp_01": "failed", "result_exp_02": "success"}
    assert next(logs.glob("result_exp_00_*.json")).stat().st_mtime_ns == written
    assert (logs / "output_exp_2_gpu0.log").is_file()
    analysis = subprocess.run(
        [sys.executable, str(SCRIPTS / "analyze_experiment_results.py"), "--results_dir", str(logs)],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, env=variables,
    )  # fmt: skip
    assert analysis.returncode == 0, analysis.stderr
    assert (logs / "experiment_analysis_summary.csv").is_file()

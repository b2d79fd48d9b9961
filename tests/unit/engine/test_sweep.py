"""The sweep runner: skips, continues after kill -9, divides cores, queues GPUs, keeps one honest row per job."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anomaly_lib.engine.launchers import LocalLauncher, RayLauncher, jobs_that_fit, visible_cores
from anomaly_lib.engine.results import ResultsTable
from anomaly_lib.engine.sweep import Job, Sweep, expand_grid, read_jobs
from anomaly_lib.errors import UserError
from scripts.sweep import main

ROOT = Path(__file__).resolve().parents[3]
# Appends its name to `calls`, waits, writes its output. -S -E: a small interpreter that starts in milliseconds.
WORK = (
    "import sys,time,os; open('calls','a').write(sys.argv[1]+'\\n'); "
    "time.sleep(float(sys.argv[2])); open(sys.argv[1]+'.out','w').write('ok')"
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def python(code: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-E", "-c", code, *words)


def job(name: str, *, seconds: float = 0.0, code: str = WORK, outputs: bool = True) -> Job:
    return Job(
        key={"name": name}, argv=python(code, name, str(seconds)), outputs=(Path(f"{name}.out"),) if outputs else ()
    )


def sweep(jobs: list[Job], *, parallel: int = 1, **options: object) -> Sweep:
    return Sweep(jobs, "sweep", launcher=LocalLauncher(parallel=parallel), **options)  # type: ignore[arg-type]


def calls() -> list[str]:
    return Path("calls").read_text().split()


def test_finished_jobs_are_skipped_until_their_command_or_output_changes() -> None:
    first = sweep([job("a"), job("b")]).run()
    assert (first.done, first.skipped, first.failed) == (["a", "b"], [], [])
    again = sweep([job("a"), job("b"), job("c")]).run()
    assert (again.done, again.skipped) == (["c"], ["a", "b"])
    Path("a.out").unlink()
    changed = sweep([job("a"), job("b", seconds=0.01), job("c")]).run()
    assert (changed.done, changed.skipped) == (["a", "b"], ["c"])
    assert calls() == ["a", "b", "c", "a", "b"]
    rows = sweep([job("a")]).table.rows()
    assert [(row["name"], row["status"], row["exit_code"]) for row in rows] == [(n, "finished", "0") for n in "abc"]


def test_a_failure_is_recorded_and_stops_nothing() -> None:
    said: list[str] = []
    jobs = [
        job("bad", code="import sys; print('reason'); sys.exit(3)"),
        job("lazy", code="pass"),
        Job(key={"name": "absent"}, argv=("no-such-program",)),
        job("good"),
    ]
    summary = sweep(jobs, say=said.append).run()
    assert summary.failed == ["bad", "lazy", "absent"]
    assert summary.done == ["good"]
    assert any("lazy: failed, did not write lazy.out" in line for line in said)
    assert "reason" in Path("sweep/jobs/bad/log.txt").read_text()
    assert "cannot be started" in Path("sweep/jobs/absent/log.txt").read_text()
    codes = {row["name"]: (row["status"], row["exit_code"]) for row in sweep(jobs).table.rows()}
    assert codes == {
        "bad": ("failed", "3"),
        "lazy": ("failed", "0"),
        "absent": ("failed", "127"),
        "good": ("finished", "0"),
    }
    # Failed jobs run again, good ones do not; a mended one replaces its row.
    mended = sweep([job("bad"), *jobs[1:]]).run()
    assert mended.done == ["bad"]
    assert mended.skipped == ["good"]
    assert len(sweep(jobs).table.rows()) == 4


def test_retries() -> None:
    flaky = "import sys; f=open('calls','a'); n=f.tell(); f.write('x'); sys.exit(n<2)"
    assert sweep([job("f", code=flaky, outputs=False)], retries=2).run().done == ["f"]
    assert Path("calls").read_text() == "xxx"


def test_metrics_of_the_run_folder_become_columns() -> None:
    code = "import json,os; os.makedirs('run'); json.dump({'metrics': {'image_auroc': 0.75}}, open('run/run.json','w'))"
    sweep([Job(key={"class": "bottle", "k": "1"}, argv=python(code), run_dir=Path("run"))]).run()
    row = sweep([Job(key={"class": "x", "k": "1"}, argv=())]).table.find(**{"class": "bottle"})
    assert row is not None
    assert (row["k"], row["image_auroc"], row["status"]) == ("1", "0.75", "finished")


def test_parallel_jobs_overlap_and_share_the_cores() -> None:
    code = (
        "import sys,time,os; open(sys.argv[1]+'.out','w').write(os.environ['OMP_NUM_THREADS']+' '+str(time.time())); "
    )
    code += "time.sleep(0.4)"
    sweep([job(name, code=code) for name in "abcd"], parallel=2).run()
    threads, began = zip(*(Path(f"{name}.out").read_text().split() for name in "abcd"), strict=True)
    assert set(threads) == {str(max(1, visible_cores() // 2))}
    times = sorted(map(float, began))
    assert times[1] - times[0] < 0.35  # two start together
    assert times[2] - times[0] >= 0.4  # the third waits for a place


def test_one_queue_per_gpu() -> None:
    code = "import sys,os; open(sys.argv[1]+'.out','w').write(str(os.environ.get('CUDA_VISIBLE_DEVICES'))); "
    code += "import time; time.sleep(0.3)"
    jobs = [job(name, code=code) for name in "ab"]
    Sweep(jobs, "sweep", launcher=LocalLauncher(gpus=["2", "5"])).run()
    assert {Path("a.out").read_text(), Path("b.out").read_text()} == {"2", "5"}
    marked = Job(key={"name": "m"}, argv=python("import sys; open('m.out','w').write(sys.argv[1])", "gpu={gpu}"))
    launcher = LocalLauncher(gpus=["7"])
    Sweep([marked], "sweep", launcher=launcher).run()
    assert Path("m.out").read_text() == "gpu=7"
    assert "CUDA_VISIBLE_DEVICES" not in launcher.describe(marked)
    assert "CUDA_VISIBLE_DEVICES=7" in launcher.describe(jobs[0])


def command_line(names: str, seconds: float) -> list[str]:
    template = f'"{sys.executable}" -S -E -c "{WORK}" {{name}} {seconds}'.replace("\\n", "\\\\n")
    return ["--command", template, "--grid", f"name={names}", "--expect", "{name}.out", "--output-dir", "sweep"]


def runner(*arguments: str) -> multiprocessing.process.BaseProcess:
    """scripts/sweep.py as a process of its own, without paying for its imports again."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(main(arguments)))
    process.start()
    return process


def wait_for(path: Path, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def test_kill_9_of_the_runner_repeats_nothing_finished_and_waits_for_its_orphan() -> None:
    first = runner(*command_line("a,b,c", 1.5))
    wait_for(Path("sweep/jobs/b/log.txt"))
    while calls() != ["a", "b"]:
        time.sleep(0.01)
    first.kill()
    first.join()
    assert not Path("b.out").exists()  # b goes on without its runner
    assert main(command_line("a,b,c", 1.5)) == 0
    assert calls() == ["a", "b", "c"]  # c ran while the orphan was at work; what the orphan wrote counts
    rows = sweep([job("a")]).table.rows()
    assert {row["name"] for row in rows} == {"a", "b", "c"}
    assert len(rows) == 3
    assert {row["status"] for row in rows} == {"finished"}


def test_a_job_killed_with_its_runner_runs_again() -> None:
    one = job("a")
    unfinished = {"key": {"name": "a"}, "argv": list(one.argv), "status": "running", "exit_code": None}
    for started, output in ((time.time() + 60, True), (time.time() - 60, False)):  # an old output, no output
        Path("a.out").write_text("") if output else Path("a.out").unlink(missing_ok=True)
        Path("sweep/jobs/a").mkdir(parents=True, exist_ok=True)
        Path("sweep/jobs/a/state.json").write_text(json.dumps(unfinished | {"started": started}))
        Path("calls").write_text("")
        assert sweep([one]).run().done == ["a"]
        assert calls() == ["a"]


def test_interrupt_ends_the_jobs_and_leaves_130() -> None:
    process = runner(*command_line("a,b", 60))
    wait_for(Path("calls"))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert not Path("a.out").exists()
    assert json.loads(Path("sweep/jobs/a/state.json").read_text())["status"] == "running"
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert not any(" a 60" in line and "calls" in line and str(process.pid) not in line for line in listed.splitlines())


def test_dry_run_prints_commands_a_shell_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command_line("a,b", 0)
    assert main([*arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert not Path("calls").exists()
    subprocess.run(lines[1], shell=True, check=True)
    assert calls() == ["b"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    assert all(line.startswith("# done: OMP_NUM_THREADS=") for line in capsys.readouterr().out.splitlines())


def test_job_lists(tmp_path: Path) -> None:
    text = tmp_path / "jobs.txt"
    text.write_text("# comment\n\npython a.py --x 'two words'\npython b.py\n")
    assert [(j.key, j.argv) for j in read_jobs(text)] == [
        ({"job": "0001"}, ("python", "a.py", "--x", "two words")),
        ({"job": "0002"}, ("python", "b.py")),
    ]
    text.write_text(
        json.dumps(
            [{"key": {"class": "a", "k": 1}, "argv": ["python", 3], "outputs": ["o"], "run_dir": "r", "log": "l"}]
        )
    )
    (one,) = read_jobs(text)
    assert one == Job(
        key={"class": "a", "k": "1"}, argv=("python", "3"), outputs=(Path("o"),), run_dir=Path("r"), log=Path("l")
    )
    text.write_text('[{"argv": []}]')
    with pytest.raises(UserError, match="'key' object"):
        read_jobs(text)
    with pytest.raises(UserError, match="no such file"):
        read_jobs(tmp_path / "none")
    grid = expand_grid("run {a} --k={k} {gpu}", {"a": ["x", "y z"], "k": ["1"]}, outputs=["{a}/{k}.pt"], run_dir="r{k}")
    assert [j.argv for j in grid] == [("run", "x", "--k=1", "{gpu}"), ("run", "y z", "--k=1", "{gpu}")]
    assert grid[0].outputs == (Path("x/1.pt"),)
    assert grid[0].run_dir == Path("r1")
    assert [j.name for j in grid] == ["x-1", "y_z-1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --jobs (a file) or --command (a template"),
        (["--command", "x", "--grid", "obj"], "write AXIS=VALUE"),
        (["--jobs", "x", "--grid", "a=1"], "--grid"),
        (["--command", "x", "--cpus-per-job", "2"], "--launcher ray"),
        (["--command", "x", "--grid", "a=1,1"], "two jobs of the sweep are called 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_local_ray_runs_the_same_jobs() -> None:
    pytest.importorskip("ray")
    arguments = ["--launcher", "ray", "--parallel", "2"]
    script = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *command_line("a,b,c", 0.1), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(script, env=environment, timeout=240, check=False).returncode == 0
    assert sorted(calls()) == ["a", "b", "c"]
    assert [row["status"] for row in sweep([job("a")]).table.rows()] == ["finished"] * 3
    assert "CUDA" not in Path("sweep/jobs/a/log.txt").read_text()


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "jobs"),
    [
        ({"CPU": 16.0}, 1, 0, 16),
        ({"CPU": 16.0}, 3, 0, 5),
        ({"CPU": 16.0, "GPU": 3.0}, 2, 1, 3),
        ({"CPU": 16.0, "GPU": 3.0}, 2, 0.5, 6),
        ({"CPU": 1.0}, 4, 0, 1),  # waits for a machine that is large enough
        ({"CPU": 2.0}, 0, 0, 1),
    ],
)
def test_as_many_jobs_as_a_cluster_holds(resources: dict[str, float], cpus: float, gpus: float, jobs: int) -> None:
    assert jobs_that_fit(resources, cpus, gpus) == jobs


def test_a_row_says_why_its_job_failed_or_what_stands_beside_its_figures() -> None:
    record = {"metrics": {"auroc": 1.0}, "remarks": ["only 3 anomalous samples"], "error": None}
    for name, more in {"good": {}, "told": {"error": "x.png: unreadable image"}}.items():
        Path(name).mkdir()
        Path(name, "run.json").write_text(json.dumps(record | more))
    jobs = [
        Job(key={"name": "good"}, argv=python("pass"), run_dir=Path("good")),
        Job(key={"name": "told"}, argv=python("raise SystemExit(2)"), run_dir=Path("told")),
        Job(key={"name": "logged"}, argv=python("print(1, flush=True); raise SystemExit('no such folder')")),
        Job(key={"name": "lazy"}, argv=python("pass"), outputs=(Path("lazy.out"),)),
        Job(key={"name": "odd"}, argv=python("pass"), run_dir=Path("odd")),
    ]
    Path("odd").mkdir()
    Path("odd", "run.json").write_text('{"metrics": {"auroc": "high"}}')
    assert sweep(jobs).run().failed == ["told", "logged", "lazy", "odd"]
    found = {row.pop("name"): row for row in sweep(jobs).table.rows()}
    assert found["good"]["remarks"] == "only 3 anomalous samples"
    assert "why" not in found["good"]
    assert "run.json: not the record of a run (metrics" in found["odd"]["why"]
    assert [found[name]["why"] for name in ("told", "logged", "lazy")] == [
        "x.png: unreadable image", "no such folder", "did not write lazy.out",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_machine_of_the_cluster_dies_in_mid_sweep() -> None:
    pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    import ray

    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        launcher = RayLauncher(address=cluster.address)
        assert launcher.capacity == 2
        jobs = [job(name, seconds=1.0) for name in "abcdef"]
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if sum("finished" in one for one in said) >= 2 and second in cluster.worker_nodes:
                cluster.remove_node(second, allow_graceful=False)

        summary = Sweep(jobs, "sweep", launcher=launcher, say=say).run()
        assert sorted(summary.done) == list("abcdef")
        rows = ResultsTable("sweep/results.csv", key=["name"]).rows()
        assert sorted((row["name"], row["status"]) for row in rows) == [(name, "finished") for name in "abcdef"]
        assert set(calls()) == set("abcdef")
        deadline = time.monotonic() + 120  # the cluster notices after some missed heartbeats
        while launcher.capacity != 1 and time.monotonic() < deadline:
            time.sleep(1)
        assert launcher.capacity == 1
    finally:
        ray.shutdown()
        cluster.shutdown()

"""The server as a program: it starts, answers as `predict` does under load, takes odd files, ends at a signal."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import anomaly_lib
from anomaly_lib.__main__ import main
from anomaly_lib.errors import UserError
from anomaly_lib.serving.metrics import resident_bytes
from anomaly_lib.serving.options import ServeArgs
from anomaly_lib.serving.run import names_of
from anomaly_lib.systems.registry import SYSTEMS
from tests.fuzz import pictures
from tests.fuzz.kinds import share
from tests.fuzz.oracle import judge
from tests.support.serving import Brightness, picture, served

ROOT = Path(__file__).resolve().parents[2]


EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small transfer detector, which is trained in a second."""
    result = SYSTEMS["hdmap"].train(
        SYSTEMS["hdmap"].tiny(output_dir=str(tmp_path_factory.mktemp("part")), figures=False)
    )
    assert result.checkpoint is not None
    return result.checkpoint


def parts(count: int) -> list[np.ndarray]:
    """Pictures of the size that it knows, from even ones to noise."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (count, 31, 95, 3)) - 128
    return [np.uint8(128 + noise[i] * i / count) for i in range(count)]


def serve(*words: object) -> int:
    return main(["serve", *map(str, words)])


def test_it_says_where_it_is_and_leaves_when_nobody_asks(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(checkpoint, "--port", 0, "--idle-seconds", 0.2, "--out", tmp_path / "out", "--queue", 9) == 0
    said = capsys.readouterr().out.splitlines()
    name = checkpoint.parent.name
    assert said[0].startswith(f"{name}: ")
    assert said[-4].startswith(f"{name} at http://127.0.0.1:")
    assert said[-3].startswith("try: curl -F file=@part.png http://127.0.0.1:")
    assert "50 megapixels an image, 9 images waiting" in said[-2]
    assert said[-1].startswith("nobody asked for 0.2 s; 0 images scored; ")


def test_mistakes_are_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        tries = {
            (): "usage: python -m anomaly_lib serve",
            (checkpoint, "--port", port): f"--port {port}: Address already in use at 127.0.0.1; give another --port",
            (checkpoint, "--host", EVERYWHERE): f"--host {EVERYWHERE}: other machines can reach it; give --token",
            (checkpoint, "--host", "no.such.host.invalid", "--token", "x" * 8): "--host no.such.host.invalid: ",
            (checkpoint, "--token", "short"): "--token short: takes at least 8 printable ASCII characters",
            (checkpoint, "--port", 0, "--obj", "nut"): "--obj nut: has no meaning",
            ("nowhere.pt", "--port", 0): "nowhere.pt: no such file",
        }
        for words, message in tries.items():
            assert serve(*words) == 2, words
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve(checkpoint) == 2
    assert 'pip install "anomaly_lib[serve]"' in capsys.readouterr().err


def test_hosts_that_only_this_machine_reaches_need_no_token() -> None:
    for host in ("localhost", "127.0.0.1", "127.8.0.1", "::1"):
        assert ServeArgs(host=host).token is None
    for host in ("", EVERYWHERE, "::", "192.168.0.1", "localhost.evil.example"):
        with pytest.raises(UserError, match="other machines can reach it"):
            ServeArgs(host=host)
    for word in ("short", "two words of it", "wört-wört"):
        with pytest.raises(UserError, match=r"^token="):
            ServeArgs(token=word)


def test_detectors_have_names_of_their_own(tmp_path: Path) -> None:
    paths = ["runs/nut/checkpoint.pt", "more/nut/best_model.pt", "bolt a.pt", "nut.pt", "nut-2.pt", "..pt"]
    assert names_of([tmp_path / path for path in paths]) == ["nut", "nut-2", "bolt-a", "nut-3", "nut-2-2", "detector"]


@pytest.fixture(scope="module")
def marks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images that a person has marked as good, and two bad ones."""
    folder, some = tmp_path_factory.mktemp("served"), parts(8)
    with served(folder, anomaly_lib.load(checkpoint)) as (address, _), httpx.Client(base_url=address) as client:
        for truth, chosen in (("good", some[:6]), ("bad", some[6:])):
            files = [("file", (f"{number}.png", png(pixels))) for number, pixels in enumerate(chosen)]
            assert client.post(f"/mark?truth={truth}", files=files, timeout=60).status_code == 200
    return folder / "marks.csv"


def test_marks_are_what_calibrate_reads(
    checkpoint: Path, marks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--normal", str(marks), "--output", str(tmp_path / "x.pt")]
    assert main(["calibrate", *words]) == 0
    assert "from 6 normal files given to calibrate" in capsys.readouterr().out
    kept = anomaly_lib.load(tmp_path / "x.pt").decision.normal
    assert kept == pytest.approx(sorted(anomaly_lib.load(checkpoint).predict(parts(8)[:6]).score.tolist()), rel=1e-5)


@pytest.mark.slow
def test_marks_are_what_fit_reads(marks: Path, tmp_path: Path) -> None:
    options = {"backbone": "demo-clip", "layers": ["layer.1"], "image_size": 64, "figures": False}
    for number, data in enumerate((marks, marks.parent / "marked")):
        fitted = anomaly_lib.fit("padim", data, output_dir=str(tmp_path / str(number)), **options)
        assert sorted(fitted.evaluate().scores.labels.tolist()) == [0, 0, 1, 1]  # four of the six good ones are learned


def png(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


@pytest.mark.parametrize("requests", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_under_load_it_answers_as_predict_does(checkpoint: Path, tmp_path: Path, requests: int) -> None:
    """Sixteen at a time: no error, no wrong answer, no memory that grows."""
    detector = anomaly_lib.load(checkpoint)
    wanted = detector.predict(parts(16))
    bodies = [png(pixels) for pixels in parts(16)]
    memory = []

    def ask(number: int) -> tuple[int, httpx.Response]:
        if number % 250 == 0:
            memory.append(resident_bytes() or 0)
        return number % len(bodies), client.post("/predict", content=bodies[number % len(bodies)])

    with (
        served(tmp_path, detector) as (address, server),
        httpx.Client(base_url=address, timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        for which, answer in pool.map(ask, range(requests)):
            assert answer.status_code == 200, answer.text
            (result,) = answer.json()["results"]
            assert result["score"] == pytest.approx(wanted.score[which].item(), rel=1e-5)
            assert result.get("anomalous") == (None if wanted.anomalous is None else bool(wanted.anomalous[which]))
        assert sum(server.metrics.images.values()) == requests
        assert server.services["a"].batches < requests  # what waited was scored together
        for _ in range(1000):  # what a request held is given back behind its answer
            if not server.app.held:
                break
            time.sleep(0.01)
        assert (server.services["a"].waiting, server.app.held) == (0, 0)
    with next((tmp_path / "history").iterdir()).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == requests
    assert all(cell for row in rows for cell in row.values())
    if requests > 1000:
        assert max(memory[2:]) < memory[1] + 60e6


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_lines_of_the_manual(tmp_path: Path) -> None:
    """Every curl line of the page is answered, with and without a token."""
    page = (ROOT / "docs" / "manual" / "serving.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("curl ")]
    assert len(lines) == 9
    for name in ("part.png", "other.png"):
        (tmp_path / name).write_bytes(picture(200))
    for token in (None, "open-sesame"):
        folder = tmp_path / f"served-{token}"
        with served(folder, Brightness(), names=["part"], token=token) as (address, _):
            for line in lines:
                if ("TOKEN" in line) == (token is None):
                    continue
                command = line.replace("http://127.0.0.1:8000", address).replace(
                    "curl ", "curl -sS --fail --noproxy '*' "
                )
                environment = os.environ | {"SERVE_TOKEN": token or ""}
                done = subprocess.run(
                    ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
                )
                assert done.returncode == 0, (line, done.stderr)
                assert "error" not in done.stdout
                assert done.stdout


def uploaded(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the fuzz generator are posted, beside being read."""
    real = pictures.read_image

    def post(path: Path) -> np.ndarray:
        if not os.path.isfile(path) or os.path.islink(path) or not Path(path).name.isprintable():
            return real(path)
        answer = client.post("/predict", files={"file": (Path(path).name, Path(path).read_bytes())})
        if answer.status_code == 200:
            return real(path)
        if answer.status_code in (400, 413, 422):
            raise UserError(answer.json()["error"])
        raise AssertionError(f"{answer.status_code}: {answer.text}")

    monkeypatch.setattr(pictures, "read_image", post)


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_odd_files_are_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    cases = list(pictures.images(np.random.default_rng(5)))
    options = {"base_url": "", "timeout": 60, "trust_env": False}
    with served(tmp_path / "out", Brightness(picky=False)) as (address, server):
        with httpx.Client(**{**options, "base_url": address}) as client:
            uploaded(client, monkeypatch)
            for number, case in enumerate(cases if count > len(cases) else share(cases, count)):
                (tmp_path / str(number)).mkdir()
                assert judge(case, tmp_path / str(number)) == "", case.name
        codes = {code for _, code in server.metrics.requests}
    assert codes <= {200, 400, 413, 422}
    assert {200, 422} <= codes


SLOW_DETECTOR = """
import sys, time
from anomaly_lib.command_line import command
from anomaly_lib.serving.options import ServeArgs
from anomaly_lib.serving.run import serve
from tests.support.serving import Brightness

class Slow(Brightness):
    def predict_pictures(self, pictures):
        print("scoring", flush=True)
        time.sleep(60)

class Systems:
    def load(self, path, **_):
        return Slow()

sys.exit(command(ServeArgs, lambda args: serve(args, Systems(), print), sys.argv[1:], prog="serve", description=""))
"""


@pytest.mark.slow
@pytest.mark.parametrize("asking", [0, 1, 6], ids=["idle", "in mid-batch", "while others wait"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_five_seconds(
    checkpoint: Path, tmp_path: Path, number: signal.Signals, asking: int
) -> None:
    words = ["--checkpoint", str(checkpoint), "--port", "0", "--out", str(tmp_path / "out")]
    program = [sys.executable, "-c", SLOW_DETECTOR, *words]
    process = subprocess.Popen(
        program,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = next(line for line in process.stdout if " at http" in line).split(" at ")[1].split(" ")[0]
        httpx.get(f"{address}health", timeout=60, trust_env=False).raise_for_status()
        waiting = f'queue_depth{{model="{checkpoint.parent.name}"}} {asking}'
        with ThreadPoolExecutor(max(1, asking)) as pool:
            answers = [
                pool.submit(httpx.post, f"{address}predict", content=picture(level), timeout=60, trust_env=False)
                for level in range(asking)
            ]
            if asking:
                next(line for line in process.stdout if "scoring" in line)
            while asking > 1 and waiting not in httpx.get(f"{address}metrics", timeout=60, trust_env=False).text:
                time.sleep(0.05)  # until all of them wait
            began = time.monotonic()
            process.send_signal(number)
            rest = process.stdout.read()
            assert process.wait(20) == 0
            assert time.monotonic() - began < 5
            assert [answer.result(5).status_code for answer in answers] == [503] * asking
    finally:
        process.kill()
    assert "stopped; 0 images scored" in rest
    assert "Traceback" not in rest


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_scores_by_one_another_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = SYSTEMS["detectors"].tiny(output_dir=str(tmp_path / "run"), model="musc", figures=False)
    SYSTEMS["detectors"].train(tiny)
    assert serve(tmp_path / "run", "--port", 0, "--out", tmp_path / "out") == 2
    assert "scores images by one another" in capsys.readouterr().err

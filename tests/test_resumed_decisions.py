"""A decision is part of what a resumed run repeats: the same samples kept from training, the same bits."""

from pathlib import Path
from typing import Any

import pytest

from anomaly_lib.engine.run import Run
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.systems.registry import SYSTEMS

EPOCHS: dict[str, dict[str, Any]] = {
    "detectors": {"model": "draem", "epochs": 2, "image_size": [32]},
    "hdmap": {"model": "draem"},
    "promptad": {"shot": 2},
    "video_ae": {"demo_good": 1},
}
"""What makes a tiny run train in epochs and decide by what it can promise."""
FAST = ("detectors", "video_ae")
TRAINED = sorted(set(SYSTEMS) - {"crystal"})


@pytest.mark.parametrize(
    "system", [pytest.param(one, marks=[] if one in FAST else pytest.mark.slow) for one in TRAINED]
)
def test_an_interrupted_run_ends_with_the_same_decision(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def args(name: str) -> Any:
        return SYSTEMS[system].tiny(output_dir=str(tmp_path / name), **EPOCHS.get(system, {}))

    whole = SYSTEMS[system].train(args("whole"))
    end_epoch = Run.end_epoch

    def stop_after_first(self: Run, state: Any, epoch: int, values: Any, **more: Any) -> None:
        end_epoch(self, state, epoch, values, **more)
        self.save(state, epoch + 1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "end_epoch", stop_after_first)
        with pytest.raises(KeyboardInterrupt):
            SYSTEMS[system].train(args("stopped"))
    resumed = SYSTEMS[system].train(args("stopped"))
    a, b = (SYSTEMS.read(one.checkpoint).extra for one in (whole, resumed))
    assert a["decision"] == b["decision"]
    assert a["decision"]["normal"]
    kept = [read_json(one.run_dir / "run.json").get("kept_from_training") for one in (whole, resumed)]
    assert kept[0] == kept[1]
    assert bool(kept[0]) == (system == "detectors")


def test_another_share_is_refused_when_a_run_goes_on(tmp_path: Path) -> None:
    small = {**EPOCHS["detectors"], "epochs": 0, "output_dir": str(tmp_path / "run")}
    done = SYSTEMS["detectors"].train(SYSTEMS["detectors"].tiny(**small))
    with pytest.raises(UserError, match=r"calibration_share=0\.2 -> 0\.3"):
        SYSTEMS["detectors"].train(
            SYSTEMS["detectors"].tiny(**small, calibration_share=0.3, resume=str(done.checkpoint))
        )

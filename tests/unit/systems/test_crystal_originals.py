"""Checkpoints of the original crystal programs (D1): every kind is read, nothing of them is run, numbers stay."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anomaly_lib
from anomaly_lib.errors import UserError
from anomaly_lib.models.crystal import batch_graphs
from anomaly_lib.systems.crystal.data.demo import demo_table
from anomaly_lib.systems.crystal.data.graph import GraphBuilder
from anomaly_lib.systems.crystal.data.settings import PAPER_GRAPHS
from anomaly_lib.systems.crystal.detector import CrystalDetector, forward
from anomaly_lib.systems.crystal.diagnosis import Summary, comparison_of_layers
from anomaly_lib.systems.crystal.inputs import Batch
from anomaly_lib.systems.crystal.scales import scale_checkpoint, scale_history
from anomaly_lib.systems.registry import SYSTEMS
from scripts.crystal.convert_checkpoint import main as convert
from tests.support import crystal_originals as originals

MIDDLE = {"use_middle_fusion": True, "middle_fusion_layers": [2], "middle_fusion_hidden_dim": 12}
FINE = {"use_fine_grained_attention": True, "fine_grained_hidden_dim": 32, "fine_grained_use_projection": True}


def with_fine_grained() -> nn.Module:
    net = originals.crysmmnet()
    net.fine_grained_attention, net.cross_modal_attention = originals.fine_grained(16), originals.exchange()
    return net


def with_exchange() -> nn.Module:
    net = originals.crysmmnet()
    net.cross_modal_attention = originals.exchange()
    return net


KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "SAGE middle fusion": (originals.sage, {**MIDDLE, "use_cross_modal": True, "use_improved_middle_fusion": False}),
    "its gate norm and learned scale": (
        lambda: originals.sage(norm=True, scale=12.0),
        {**MIDDLE, "middle_fusion_use_gate_norm": True, "middle_fusion_use_learnable_scale": True},
    ),
    "two layers": (lambda: originals.sage(layers_of_text=(1, 2)), {**MIDDLE, "middle_fusion_layers": [1, 2]}),
    "from before there was a scale": (lambda: originals.sage(old=True), MIDDLE),
    "improved middle fusion": (
        lambda: originals.sage(improved=True),
        {**MIDDLE, "use_improved_middle_fusion": True, "middle_fusion_use_dynamic_gating": True},
    ),
    "fine-grained": (with_fine_grained, {**FINE, "use_middle_fusion": False, "use_cross_modal": True}),
    "cross-modal": (with_exchange, {"use_cross_modal": True, "cross_modal_hidden_dim": 32, "use_middle_fusion": False}),
    "CrysMMNet": (originals.crysmmnet, {"use_cross_modal": False, "modality": "both", "late_fusion_type": "concat"}),
    "ALIGNN": (originals.alignn, {"modality": "graph", "graph_norm": "batch"}),
    "ALIGNN with LayerNorm": (
        lambda: originals.alignn(norm=torch.nn.LayerNorm),
        {"modality": "graph", "graph_norm": "layer"},
    ),
}
GRAPHS = {"alignn_layers": 3, "gcn_layers": 2, "hidden_features": 16, "embedding_features": 8}


def outputs_of(detector: CrystalDetector) -> Tensor:
    """Its predictions of three crystals with made-up word vectors."""
    rows = demo_table(count=3, seed=4).rows
    build = GraphBuilder(detector.args)
    graph = batch_graphs([build(row.source) for row in rows], keep_self_links=False)
    text = torch.sin(torch.arange(3 * 5 * originals.TEXT, dtype=torch.float32)).reshape(3, 5, originals.TEXT)
    with torch.no_grad():
        return forward(detector.model, Batch(graph, text, None, torch.zeros(3))).prediction


CASES = [(kind, "model") for kind in KINDS] + [("SAGE middle fusion", "bare"), ("ALIGNN", "module.")]


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_every_kind_is_read_and_converted(kind: str, shape: str, tmp_path: Path) -> None:
    make, options = KINDS[kind]
    state = originals.trained(make())
    content = {f"module.{name}": value for name, value in state.items()} if shape == "module." else state
    source, ours = tmp_path / "best_val_model.pt", tmp_path / "ours.pt"
    torch.save({"model": content} if shape == "model" else content, source)
    checkpoint = SYSTEMS.read(source)
    assert checkpoint.adopted
    assert checkpoint.args.items() >= {**GRAPHS, **options, **PAPER_GRAPHS, "standardize": False}.items()
    detector = anomaly_lib.load(source)
    loaded = detector.model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    before = outputs_of(detector)
    assert before.std() > 1e-4
    assert convert(["--input", str(source), "--output", str(ours)]) == 0
    torch.testing.assert_close(outputs_of(anomaly_lib.load(ours)), before, rtol=0, atol=0)
    assert not SYSTEMS.read(ours).adopted
    assert torch.load(ours)["model"].keys() >= state.keys()  # torch's own reader and the document's snippet


def settings_of(path: Path) -> dict[str, Any]:
    return asdict(SYSTEMS.load(path).args)


def test_the_pickled_configuration_is_read(tmp_path: Path) -> None:
    path = originals.best_test_model(tmp_path)
    assert "models.alignn" in torch.serialization.get_unsafe_globals_in_checkpoint(str(path))[0]
    found = settings_of(path)
    told = {
        "graph_dropout": 0.15, "middle_fusion_dropout": 0.35, "cross_modal_num_heads": 2, "use_contrastive": True,
        "contrastive_weight": 0.2, "select": "best-on-test", "backbone": "matscibert", "property": "hse_bandgap-2",
    }  # fmt: skip
    assert found.items() >= told.items()
    detector = anomaly_lib.load(path)
    assert detector.facts.remarks() == ["oracle: epoch chosen on the test split"]
    assert detector.facts.shown["epoch"] == 87


@pytest.mark.parametrize("edition", ["pydantic", "pydantic.v1"])
def test_the_configuration_of_either_pydantic(edition: str, tmp_path: Path) -> None:
    pydantic = pytest.importorskip(edition)
    settings = {name: (type(value), value) for name, value in originals.SAGE_SETTINGS.items()}
    kind = pydantic.create_model("ALIGNNConfig", **settings)
    path = tmp_path / "best_val_model.pt"
    originals.save_with_object(path, {"model": originals.trained(originals.sage())}, {"graph_dropout": 0.25}, kind)
    assert settings_of(path).items() >= {"graph_dropout": 0.25, "middle_fusion_dropout": 0.35}.items()


def test_a_plain_configuration_and_one_that_lies_beside(tmp_path: Path) -> None:
    state = originals.trained(with_fine_grained())
    assert anomaly_lib.load(saved(tmp_path / "bare.pt", state)).facts.remarks() == [
        "fine_grained_num_heads=8 is assumed: the file does not tell it"
    ]
    plain = saved(
        tmp_path / "plain.pt", {"model": state, "config": {**originals.SETTINGS, "fine_grained_num_heads": 4}}
    )
    assert settings_of(plain)["fine_grained_num_heads"] == 4
    run = tmp_path / "out" / "mbj_bandgap"
    run.mkdir(parents=True)
    beside = {"dataset": "user_data", "target": "target", "epochs": 300, "n_train": 40, "max_neighbors": 9,
              "atom_features": "cgcnn", "model": {**originals.SETTINGS, "fine_grained_num_heads": 2}}  # fmt: skip
    (run / "config.json").write_text(json.dumps(beside))
    found = settings_of(saved(run / "checkpoint_12.pt", {"model": state}))
    assert found.items() >= {
        "fine_grained_num_heads": 2, "epochs": 300, "n_train": 40, "max_neighbors": 9, "property": "mbj_bandgap",
    }.items()  # fmt: skip
    assert SYSTEMS.read(run / "checkpoint_12.pt")["epoch"] == 12


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_a_configuration_given_wins_and_may_not_contradict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = originals.best_test_model(tmp_path)
    config, ours = tmp_path / "c.json", tmp_path / "ours.pt"
    words = ["--input", str(path), "--output", str(ours), "--config_file", str(config)]
    config.write_text(json.dumps({**originals.SAGE_SETTINGS, "cross_modal_num_heads": 8}))
    given = ["--property", "mbj_bandgap", "--root_dir", "data", "--text-weights", "bert"]
    assert convert([*words, *given]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("CrystalFusionModel(3 + 2 layers, 16 channels, text 24, middle fusion at layer_2")
    assert said[-1] == f"next: python evaluate.py --checkpoint {ours}"
    told = {"cross_modal_num_heads": 8, "property": "mbj_bandgap", "data_path": "data", "weights": "bert"}
    assert torch.load(ours)["args"].items() >= told.items()
    for content, said_of_it in (
        ({"hidden_features": 256}, "its configuration says hidden_features=256, its tensors 16"),
        ({"middle_fusion_layers": "1,2"}, "says middle_fusion_layers=1 2, its tensors 2"),
        ({"link": "log"}, "link=log: only identity is here"),
        ({"name": "ealignn"}, "name=ealignn: only alignn or alignn_layernorm or alignn_atomwise is here"),
        ({"use_cutoff_function": True}, "use_cutoff_function=True: only False is here"),
        ({"graph_dropout": "much"}, "graph_dropout='much': takes a number"),
        ({"standardize": True}, "by what its targets were scaled"),
    ):
        config.write_text(json.dumps({**originals.SAGE_SETTINGS, **content}))
        assert convert(words) == 2
        refused = capsys.readouterr().err
        assert said_of_it in refused
        assert str(path) in refused
        assert refused.count("\n") == 1
    for text, reason in (("[1]", "expected a JSON object"), ("{", "not valid JSON")):
        config.write_text(text)
        assert convert(words) == 2
        assert reason in capsys.readouterr().err


# -- nothing is run ----------------------------------------------------------------------------------------------------


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, call: Any, *words: str) -> None:
        self.call, self.words = call, words

    def __reduce__(self) -> Any:
        return self.call, self.words


@pytest.mark.parametrize("call", [eval, exec, print, shutil.rmtree], ids=["eval", "exec", "print", "rmtree"])
def test_a_bomb_in_the_place_of_the_configuration_stays_inert(
    call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, kept = tmp_path / "mark", tmp_path / "kept"
    kept.mkdir()
    word = {print: str(mark), shutil.rmtree: str(kept)}.get(call, f"open({str(mark)!r}, 'w')")
    path = saved(tmp_path / "best.pt", {"model": originals.trained(originals.sage()), "config": Bomb(call, word)})
    detector = anomaly_lib.load(path)
    assert detector.args.middle_fusion_layers == [2]  # sizes come from the tensors
    assert convert(["--input", str(path), "--output", str(tmp_path / "ours.pt")]) == 0
    assert kept.is_dir()
    assert not mark.exists()
    assert str(mark) not in capsys.readouterr().out


def test_a_bomb_of_the_operating_system_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bomb = Bomb(os.system, f"touch {mark}")
    for content in ({"model": originals.trained(originals.alignn()), "config": bomb}, bomb, [bomb], {"model": bomb}):
        with pytest.raises(UserError) as refused:
            anomaly_lib.load(saved(tmp_path / "best.pt", content))
        assert "\n" not in str(refused.value)
        assert "\x1b" not in str(refused.value)  # torch's message has terminal codes
        assert not mark.exists()


def test_their_module_is_not_imported_where_it_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = originals.best_test_model(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / "models" / "alignn.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass ALIGNNConfig: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert anomaly_lib.load(path).args.graph_dropout == 0.15
    assert "models.alignn" not in sys.modules
    assert not (tmp_path / "mark").exists()


# -- what cannot be read ----------------------------------------------------------------------------------------------


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(names)}


REFUSED: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "two classes": (lambda: originals.trained(originals.alignn(outputs=2)), "predicts more than one value"),
    "two kinds of norm": (
        lambda: {k: v for k, v in originals.trained(originals.alignn()).items() if "atom_embedding.layer.1.r" not in k},
        "no network here has this tensor",
    ),
    "other atom features": (
        lambda: {**originals.trained(originals.alignn()), "atom_embedding.layer.0.weight": torch.zeros(16, 11)},
        r"reads 11 atom features \(cgcnn\); the networks here read 92",
    ),
    "a new part": (
        lambda: {**originals.trained(originals.sage()), "gated_cross_attention.query.weight": torch.zeros(2)},
        "gated_cross_attention.query.weight: no network here has this tensor",
    ),
    "a missing part": (
        lambda: without(originals.trained(originals.sage()), "graph_projection.fc"),
        "graph_projection.fc.bias is missing",
    ),
    "a missing layer": (
        lambda: without(originals.trained(originals.alignn()), "alignn_layers.1."),
        "alignn_layers has gaps",
    ),
    "another shape": (
        lambda: {**originals.trained(originals.sage()), "fc1.weight": torch.zeros(64, 100)},
        r"fc1.weight has shape \(64, 100\), expected \(64, 128\)",
    ),
    "nothing of theirs": (
        lambda: {"weight": torch.zeros(3)},
        "nor one of the original PromptAD, SOWA or crystal programs",
    ),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_is_not_here_gets_one_line(kind: str, tmp_path: Path) -> None:
    make, said = REFUSED[kind]
    path = saved(tmp_path / "best.pt", {"model": make()})
    with pytest.raises(UserError, match=said) as refused:
        anomaly_lib.load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


ODD: tuple[Any, ...] = (
    None, 3, -5, "x", [], {}, True, float("nan"), 10**30, [[1]], b"x", {"a": {"b": 1}}, torch.zeros(()), torch.zeros(3),
    torch.zeros(2, 2, 2), torch.zeros(0, 92), torch.zeros(16, 92, dtype=torch.int64),
)  # fmt: skip
ODD_NAMES = (3, None, "", "alignn_layers.999999999.x", "alignn_layers.x", f"middle_fusion_modules.layer_{'9' * 20}.a",
             "middle_fusion_modules.layer_0.text_scale", "fusion_module.graph_proj.weight")  # fmt: skip
ODD_SETTINGS = ("standardize", "max_neighbors", "n_train", "seed", 5, *originals.SAGE_SETTINGS)


def bent(rng: random.Random) -> dict[Any, Any]:
    """The content of an original checkpoint with one to three things changed."""
    kinds = [originals.sage, originals.alignn, originals.crysmmnet]
    state: dict[Any, Any] = dict(originals.trained(rng.choice(kinds)()))
    settings: dict[Any, Any] = dict(originals.SAGE_SETTINGS)
    content: dict[Any, Any] = {"model": state, "epoch": 3, "config": settings}
    for _ in range(rng.randint(1, 3)):
        part, names = rng.choice(
            [(state, sorted(state, key=str)), (state, ODD_NAMES), (settings, ODD_SETTINGS),
             (content, ("epoch", "config", "model", "extra", 7, None))]
        )  # fmt: skip
        name = rng.choice(names)
        if name in part and rng.random() < 0.3:
            del part[name]
        else:
            part[name] = rng.choice(ODD)
    return content


@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_odd_content_is_read_or_refused_in_one_line(count: int, tmp_path: Path) -> None:
    rng, refused = random.Random(0), list[str]()
    for _ in range(count):
        try:
            SYSTEMS.load(saved(tmp_path / "best_test_model.pt", bent(rng)))
        except UserError as error:
            refused.append(str(error))
    assert not any("\n" in said for said in refused)
    assert count / 2 < len(refused) < count


def test_modules_that_were_never_called_are_left_out(tmp_path: Path) -> None:
    path = originals.best_test_model(tmp_path, originals.sage(layers_of_text=(2, 7)), middle_fusion_layers="2,7")
    detector = anomaly_lib.load(path)
    assert detector.args.middle_fusion_layers == [2]
    assert "middle fusion after layer 7 left out: there is no such layer" in detector.facts.remarks()


def test_its_data_are_not_taken_to_be_the_built_in_ones(tmp_path: Path) -> None:
    path, ours = saved(tmp_path / "a.pt", originals.trained(originals.alignn())), tmp_path / "ours.pt"
    assert convert(["--input", str(path), "--output", str(ours)]) == 0
    for one in (path, ours):
        with pytest.raises(UserError, match="on which data it was trained: give data_path="):
            anomaly_lib.load(one).items()


def test_what_convert_does_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, ours, other = tmp_path / "a.pt", tmp_path / "ours.pt", tmp_path / "other.pt"
    saved(path, originals.trained(originals.alignn()))
    saved(other, {"weight": torch.zeros(3)})
    assert convert(["--input", str(path), "--output", str(ours)]) == 0
    for words, said in (
        ([], "give --input and --output"),
        (["--input", str(path), "--output", str(path)], "would overwrite its source"),
        (["--input", str(ours), "--output", str(other)], "a checkpoint of this library already"),
        (["--input", str(other), "--output", str(ours)], "not a checkpoint of the original crystal programs"),
        (["--input", "no.pt", "--output", str(ours)], "--input no.pt: no such file"),
        (
            ["--input", str(path), "--output", str(ours), "--weights", "x"],
            "--weights x: has no effect, this network reads no text",
        ),
    ):
        assert convert(words) == 2
        assert said in capsys.readouterr().err


# -- tools that read the file itself ----------------------------------------------------------------------------------


def test_scaling_and_monitoring_take_them_as_they_are(tmp_path: Path) -> None:
    net = originals.sage(layers_of_text=(1, 2), scale=9.5)
    settings = {"middle_fusion_layers": "1,2", "middle_fusion_use_learnable_scale": True}
    source = originals.best_test_model(tmp_path, net, **settings)
    norms = scale_checkpoint(source, tmp_path / "scaled.pt", 12.0)
    assert len(norms) == 4  # weight and bias after both layers
    assert all(after == pytest.approx(12 * before, rel=1e-5) for before, after in norms.values())
    one, other = torch.load(tmp_path / "scaled.pt")["model"], SYSTEMS.read(source)["model"]
    name = "middle_fusion_modules.layer_2.text_transform.3.weight"
    torch.testing.assert_close(one[name], 12 * other[name])
    assert scale_history(tmp_path, "best_test_model.pt") == ([86], {"layer_1": [9.5], "layer_2": [9.5]})


def test_every_layer_is_compared() -> None:
    """D3: two layers each; where only one model has a layer it is named; without a shared one the first are paired."""

    def summary(value: float) -> Summary:
        return Summary(*[value] * len(fields(Summary)))

    one, other = {"layer_1": summary(1.0), "layer_2": summary(2.0)}, {"layer_1": summary(3.0), "layer_2": summary(8.0)}
    lines = comparison_of_layers(one, other)
    assert [line for line in lines if line.startswith("layer_")] == ["layer_1", "layer_2"]
    shares = [line.split()[-3:] for line in lines if line.startswith("injected share")]
    assert shares == [["1.0000", "3.0000", "+200.0%"], ["2.0000", "8.0000", "+300.0%"]]
    assert comparison_of_layers(one, {"layer_2": summary(5.0)})[-1] == "layer_1: in model 1 only"
    lines = comparison_of_layers({"layer_1": summary(1.0)}, {"layer_3": summary(5.0)})
    assert lines[0] == "model 1 at layer_1, model 2 at layer_3"

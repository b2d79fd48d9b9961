"""HDMAP's experiments, pages, and the demo backbone."""

from tests.support.making import Made
from tests.support.walking import Walk
from tests.walks.registry import ASKS_THE_NETWORK, RECORDED, SPEED, walk_of

TRAINING = "scripts/hdmap/multi_domain_hdmap_patchcore-training.py"


def one_condition(made: Made) -> dict[str, object]:
    return {"gpu_id": "0", "experiment_id": 0, "log_dir": "logs", "conditions": str(made.conditions())}


@walk_of(TRAINING)
def training(made: Made) -> Walk:
    return Walk(
        one_condition(made),
        {"experiment_id": ({}, 1), "get_experiment_count": ({}, True), "scale": ({}, "full"), "seed": ({}, 7)},
        {"fresh": "a finished condition: tests/e2e/test_hdmap_experiments.py", "download": ASKS_THE_NETWORK},
    )


@walk_of("scripts/hdmap/run_conditions.py")
def conditions(made: Made) -> Walk:
    return Walk(
        {"conditions": str(made.conditions()), "log_dir": "logs", "dry_run": True},
        {"only": ({}, ["small_1"]), "gpus": ({}, ["0", "1"]), "weights": ({}, ["random"])},
        {"parallel": SPEED},
    )


@walk_of("scripts/hdmap/convert_mat.py")
def convert(made: Made) -> Walk:
    return Walk(
        {"mat_root": str(made.maps()), "version": "5_tiff_minmax"},
        {"version": ({}, "5_16bit_original"), "domain_map": ({}, "old"), "test_count": ({}, 3)},
    )


@walk_of("scripts/hdmap/intensity_baselines.py")
def brightness(_: Made) -> Walk:
    return Walk({"maps": 4})


@walk_of("scripts/hdmap/analyze_experiment_results.py")
def analyze(made: Made) -> Walk:
    results = made.experiments(TRAINING, one_condition(made))
    return Walk({"results_dir": "results"}, {"output_dir": ({}, "tables")}, files={"results": results})


@walk_of("scripts/sowa/demo_results.py")
def sowa(made: Made) -> Walk:
    folders = {"page": "page.md", "cache_dir": "cache", "output_dir": "out"}
    return Walk(
        {"seeds": [0], "epochs": 1, "data_path": str(made.four_classes()), **folders},
        {"seeds": ({}, [1]), "page": ({}, "no.md")},
        files={"page.md": made.page("<!-- demo results -->", "<!-- end of demo results -->")},
    )


@walk_of("scripts/make_figures.py")
def pages(made: Made) -> Walk:
    places = {"runs": "runs", "docs": "docs", "readme": "README.md", "benchmarks": "benchmarks"}
    page = made.page("<!-- figures: begin (make figures) -->", "<!-- figures: end -->")
    return Walk(
        {**places, "only": ["results"]},
        {
            "runs": ({}, "nothing"),
            "readme": ({}, "no.md"),
            "figures_per_system": ({}, 0),
            "gallery": ({"figures_per_system": 0}, ["one"]),
        },
        {"benchmarks": "there are none: tests/unit/viz"},
        files={"runs": made.runs(), "README.md": page},
    )


@walk_of("scripts/check_real_detectors.py")
def real(_: Made) -> Walk:
    narrow = {"models": ["draem_sevnet"], "image_size": [64], "epochs": 1, "width": 4}
    return Walk(
        {"categories": ["set/grid"], "models": ["patchcore"], "image_size": [32], "output": "rows.json", "peer": False},
        {
            "categories": ({}, ["set/woven"]),
            "models": ({}, ["padim"]),
            "image_size": ({}, [64]),
            "seeds": ({}, [1]),
            "epochs": ({"models": ["reverse_distillation"], "image_size": [64], "epochs": 1}, 2),
            "learning_rate": (narrow, 0.01),
            "width": (narrow, 6),
        },
        {"write_docs": RECORDED},
    )


@walk_of("scripts/demo_backbone/measure.py")
def measure(_: Made) -> Walk:
    return Walk({"shot": 1, "test_good": 2, "per_defect": 1}, {"image_size": ({}, [64])}, {"write_docs": RECORDED})


@walk_of("scripts/demo_backbone/train.py")
def train(_: Made) -> Walk:
    small = {"products": 8, "validation_products": 16, "steps": 2, "warmup": 1, "threads": 1}
    return Walk(
        {**small, "output_dir": "out"},
        {"start": ({}, "no.safetensors"), "warmup": ({}, 0), "seed": ({}, 1), "products": ({}, 9)},
        {
            "threads": SPEED,
            "save_every": "how often, not what: tests/demo_backbone/test_training.py",
            "evaluate": "a minute; measure.py is walked by itself",
        },
    )


@walk_of("scripts/detectors/study_rows.py")
def rows(_: Made) -> Walk:
    names = ("output", "cache_dir", "categories", "blocks", "seeds", "write_docs")
    return Walk({}, elsewhere=dict.fromkeys(names, "real weights and data: $ANOMALY_LIB_DATA"))


@walk_of("scripts/detectors/fewshot_ledger.py")
def ledger(_: Made) -> Walk:
    names = ("output", "cache_dir", "only", "seeds", "repeats", "write_docs")
    return Walk({}, elsewhere=dict.fromkeys(names, "real weights and data: $ANOMALY_LIB_DATA"))


@walk_of("scripts/pages/false_alarm_table.py")
def alarms(_: Made) -> Walk:
    return Walk({}, elsewhere={"rows": RECORDED})

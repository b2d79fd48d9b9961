"""Every command: its options, its body, and the options that words without a name fill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from anomaly_lib.bare_words import name_bare_words, split_bare_words
from anomaly_lib.command_line import PROGRAM, command
from anomaly_lib.commands import looking
from anomaly_lib.commands.completion import CompletionArgs, completion_script
from anomaly_lib.commands.training import FitArgs, fit, fitting_options
from anomaly_lib.config import Options, override
from anomaly_lib.evaluation.options import CalibrateArgs, EvaluateArgs, ExportArgs, PredictArgs
from anomaly_lib.serving.options import ServeArgs
from anomaly_lib.systems.registry import SYSTEMS


@dataclass
class ReportArgs(EvaluateArgs):
    """Evaluation as a page to look at: every test image, its heat map, its score and the decision."""

    report: Optional[str] = override(EvaluateArgs, "report", help="folder of the page; None = beside the tables")


def run_evaluation(args: EvaluateArgs) -> int:
    from anomaly_lib.evaluation.evaluate import evaluate

    return evaluate(args, SYSTEMS, print)


def run_report(args: ReportArgs) -> int:
    from anomaly_lib.evaluation.checkpoints import find_checkpoints
    from anomaly_lib.evaluation.evaluate import evaluate, folder_of

    folder = args.report or str(folder_of(args, find_checkpoints(args.checkpoint)[0]) / "report")
    return evaluate(replace(args, report=folder), SYSTEMS, print)


def run_prediction(args: PredictArgs) -> int:
    from anomaly_lib.evaluation.predict import predict_stream

    return predict_stream(args, SYSTEMS, print)


def run_calibration(args: CalibrateArgs) -> int:
    from anomaly_lib.evaluation.calibrate import calibrate

    return calibrate(args, SYSTEMS, print)


def run_export(args: ExportArgs) -> int:
    from anomaly_lib.evaluation.export import export

    return export(args, SYSTEMS, print)


def run_server(args: ServeArgs) -> int:
    from anomaly_lib.serving.run import serve

    return serve(args, SYSTEMS, print)


def write_completion(args: CompletionArgs) -> None:
    commands = {name: one.Args for name, one in COMMANDS.items()}
    print(completion_script(args.shell, commands, {name: one.bare for name, one in COMMANDS.items()}), end="")


@dataclass(frozen=True)
class Command:
    Args: type[Options]
    body: Callable[[Any], object]
    bare: Sequence[str] = ()  # options that words without a name fill, in this order
    rest: str = ""  # the option that takes any number of words as they are, blanks and commas included
    choose: Callable[[Sequence[str]], type[Options]] | None = None  # the options where the words decide

    def run(self, name: str, argv: Sequence[str]) -> int:
        """Parse, do, leave with an exit code."""
        words, body = list(argv), self.body
        cls = self.choose(words) if self.choose else self.Args
        if self.rest:
            words, found = split_bare_words(words, cls, values_of=self.rest)
            body = lambda args: self.body(replace(args, **{self.rest: found}))  # noqa: E731
        else:
            words = name_bare_words(words, cls, self.bare)
        return command(cls, body, words, prog=f"{PROGRAM} {name}", description=(cls.__doc__ or "").strip())


COMMANDS: dict[str, Command] = {
    "fit": Command(FitArgs, fit, ["data_path"], choose=fitting_options),
    "evaluate": Command(EvaluateArgs, run_evaluation, ["checkpoint"]),
    "report": Command(ReportArgs, run_report, ["checkpoint"]),
    "predict": Command(PredictArgs, run_prediction, rest="input"),
    "calibrate": Command(CalibrateArgs, run_calibration, ["checkpoint"]),
    "export": Command(ExportArgs, run_export, ["checkpoint"]),
    "serve": Command(ServeArgs, run_server, rest="checkpoint"),
    "demo": Command(looking.DemoArgs, looking.write_demo_files, ["output"]),
    "check": Command(looking.CheckArgs, looking.check, ["system"]),
    "list": Command(looking.ListArgs, looking.show_list),
    "info": Command(looking.InfoArgs, looking.show_info),
    "cache": Command(looking.CacheInfoArgs, looking.cache, ["action"]),
    "new-detector": Command(looking.NewDetectorArgs, looking.new_detector, ["name"]),
    "completion": Command(CompletionArgs, write_completion, ["shell"]),
}


def summary_of(name: str) -> str:
    """A command in a line."""
    return (COMMANDS[name].Args.__doc__ or "").strip().splitlines()[0].rstrip(".")

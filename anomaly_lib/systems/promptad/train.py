"""PromptAD: learn a few prompt contexts from k normal images, remember their patches, fuse both opinions.

Frozen towers run once per image (feature store); an epoch is one pass of the text tower over the prompts' token tree.
The fusion mode is no part of PromptAD's loss: it scores, and under --select val|best-on-test it chooses the epoch. With
--fusion-in-loss, an extension, the fused score is trained too.
"""

from dataclasses import dataclass

import torch

from anomaly_lib.backbones.sources import demo_clip_offered
from anomaly_lib.data.views import with_views
from anomaly_lib.detect.figures import draw_maps
from anomaly_lib.detect.scores import sample_remarks, summary
from anomaly_lib.engine.amp import autocast_for, make_scaler, pick_device
from anomaly_lib.engine.checkpoint import TrainState
from anomaly_lib.engine.distributed import single_process_only
from anomaly_lib.engine.optim import NonFiniteGuard, step
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.engine.schedule import make_schedule
from anomaly_lib.models.promptad.model import PromptAD
from anomaly_lib.models.promptad.scores import ImageFeatures
from anomaly_lib.systems.promptad.data import TaskData, open_task
from anomaly_lib.systems.promptad.detector import SYSTEM, PromptADDetector, decision_of, prompt_name
from anomaly_lib.systems.promptad.features import Towers
from anomaly_lib.systems.promptad.fusion_loss import fused_ranking
from anomaly_lib.systems.promptad.loop_root import note_result, placed
from anomaly_lib.systems.promptad.options import Args
from anomaly_lib.systems.promptad.selection import keep_if_better, make_judge
from anomaly_lib.types import RunResult

REMEDY = "class_text=object (or other words it knows), or backbone=ViT-B-16-plus-240, which knows every word"


@dataclass
class Experiment:
    """Everything one run works with."""

    args: Args
    data: TaskData
    towers: Towers
    support: ImageFeatures
    model: PromptAD


def train(args: Args) -> RunResult:
    """Fit the contexts, score the test set once, leave checkpoint, metrics and figures in the run folder."""
    single_process_only("PromptAD", "scripts/promptad/train_harmonic.sh --gpus 0 1 gives every device its own runs")
    args = resumed(SYSTEM, args)
    device, data = pick_device(args.device), open_task(args)
    own, name = placed(args, data.class_name), f"{args.dataset}-{data.class_name}-k{args.shot}-{args.task}"
    with Run.open(SYSTEM, own, name=name, data=data.fingerprint) as run:
        result = run.repeat() if run.finished else fit(run, own, data, device)
        note_result(args, data.class_name, result)
        return result


def fit(run: Run, args: Args, data: TaskData, device: torch.device) -> RunResult:
    """The training itself."""
    with demo_clip_offered():
        towers = Towers(args, device, run.log.line)
    what = f"PromptAD {args.task}: {data.class_name}, k={args.shot} ({data.chosen['how']}), fusion {args.fusion_mode}"
    run.opening(what, weights=towers.weights, cost=[towers.cost(data.support, data.test)])
    run.note(support=data.chosen, skipped=data.skipped)
    experiment = build(args, data, towers)
    if args.data_path and args.dataset != "demo":
        towers.clip.text.check_words(experiment.model.learner.words, REMEDY)
    model, features = experiment.model, experiment.support.for_task(args.task)  # [k, D] or [k, P, D]
    optimizer = torch.optim.SGD(
        model.learner.parameters(), lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scheduler = make_schedule(optimizer, "cosine", args.epochs, min_lr=args.min_lr)
    scaler, guard = make_scaler(device, args.precision), NonFiniteGuard()
    state = TrainState(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    judge = make_judge(args, data, towers, model)
    ranking = fused_ranking(args, data, towers, model, experiment.support) if args.fusion_in_loss else None

    for epoch in range(run.restore(state), args.epochs):
        values: dict[str, float] = {}
        for rows in torch.arange(len(features)).split(args.batch_size):
            with autocast_for(device, args.precision):
                text = model.encode_prompts()
                losses = model.losses(features[rows], text)
                if ranking is not None:
                    losses["fusion"] = ranking(text.prototypes(), model.logit_scale)
                total = torch.stack(list(losses.values())).sum()
            report = step(total, optimizer, scaler=scaler, clip=args.grad_clip, guard=guard)
            values = {name: value.item() for name, value in losses.items()}
            values |= {"loss": total.item(), "grad_norm": report.grad_norm}
        values["lr"] = optimizer.param_groups[0]["lr"]
        scheduler.step()
        if judge is not None and (args.select != "last" or (epoch + 1) % args.eval_every == 0):
            values[judge.name] = judge(model)
            keep_if_better(state, model, epoch, values[judge.name], args.select)
        run.end_epoch(state, epoch, values)

    return finish(run, state, experiment)


def build(args: Args, data: TaskData, towers: Towers) -> Experiment:
    """Support features and the model with its memory filled."""
    support = towers.features(data.support, test=False)
    views = with_views(data.support, args.memory_views)
    memory = ImageFeatures.concatenate([support, towers.features(views, test=False)]) if views else support
    model = PromptAD(args, towers=towers, class_name=prompt_name(data.class_name))
    model.remember(memory.gallery_rows())
    experiment = Experiment(args, data, towers, support, model)
    fit_to_support(experiment)
    return experiment


def fit_to_support(experiment: Experiment) -> None:
    """Text prototypes of the present contexts, and under them the scores of normal images the memory lacks."""
    data, towers, model = experiment.data, experiment.towers, experiment.model
    views = None
    if experiment.args.shot == 1:  # nothing to leave out
        views = towers.features(with_views(data.support, "mild"), test=False)
    model.keep_text_features()
    model.normal = model.left_out_branches(experiment.support, views, tiles=len(towers.tiles))


def detector_of(experiment: Experiment) -> PromptADDetector:
    """The detector that the present contexts make."""
    fit_to_support(experiment)
    args, model = experiment.args, experiment.model.eval()
    return PromptADDetector(model, experiment.towers, args, decision_of(model, args, experiment.towers.tiles))


def finish(run: Run, state: TrainState, experiment: Experiment) -> RunResult:
    """Choose the contexts, decide, score the test set, write the checkpoint that inference uses."""
    args, data, model = experiment.args, experiment.data, experiment.model
    last = {name: tensor.clone() for name, tensor in model.learner.state_dict().items()}
    chosen = args.select != "last" and bool(state.best)
    if chosen:
        model.learner.load_state_dict(state.best["contexts"])
        run.log.line(f"kept epoch {state.best['epoch'] + 1} ({args.select}, fusion {args.fusion_mode})")
    detector = detector_of(experiment)
    decision, normal = detector.decision, model.normal
    assert decision is not None
    assert normal is not None
    state.extra = {
        "class_name": data.class_name, "support": data.chosen, "normal": normal.plain(), "decision": decision.plain(),
    }  # fmt: skip
    scores = detector.score(detector.selection(data.test))
    if args.figures:
        run.note(figures=[path.name for path in draw_maps(run.dir, scores, decision)])
    final = run.save(state, len(state.history), "best_model.pt") if chosen else None
    model.learner.load_state_dict(last)
    remarks = [*detector.facts.notes, *sample_remarks(scores)]
    return run.finish(state, summary(scores, decision), final=final, remarks=remarks, decision=decision.describe())

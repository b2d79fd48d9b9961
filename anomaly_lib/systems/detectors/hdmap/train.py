"""Multi-domain HDMAP: fit a detector on one gearbox domain, measure what is left of it on the others."""

from anomaly_lib.backbones.identity import weights_of
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.scores import sample_remarks, summary
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.distributed import is_main, process_group
from anomaly_lib.engine.resume import resumed
from anomaly_lib.engine.run import Run
from anomaly_lib.files import write_json
from anomaly_lib.metrics import auroc
from anomaly_lib.models.detectors.registry import entry_of
from anomaly_lib.systems.detectors.build import build
from anomaly_lib.systems.detectors.data import with_textures
from anomaly_lib.systems.detectors.fitting import BEST, cost_lines, fit
from anomaly_lib.systems.detectors.hdmap.detector import TransferDetector, open_domains
from anomaly_lib.systems.detectors.hdmap.domain_files import write_domain
from anomaly_lib.systems.detectors.hdmap.options import Args, scale_remarks
from anomaly_lib.systems.detectors.hdmap.reader import MultiDomainHDMAPDataModule
from anomaly_lib.systems.detectors.hdmap.transfer import (
    domain_results,
    domains_of,
    images_of_maps,
    source_decision,
)
from anomaly_lib.systems.detectors.inputs import Inputs, score_all
from anomaly_lib.systems.detectors.train import without_meaning
from anomaly_lib.types import RunResult


def train(args: Args, data: MultiDomainHDMAPDataModule | None = None) -> RunResult:
    """Fit on the source, set the threshold there, score the source and every target once.

    `data`: domains that have been read already; None = those of the options.
    """
    args, device = resumed("hdmap", args), pick_device(args.device)
    data = open_domains(args) if data is None else data
    name = f"{args.condition}-{args.model}-{args.source_domain}"
    known, kept = with_textures(data.fingerprint(), args), [BEST]
    with process_group(device), Run.open("hdmap", args, name=name, data=known, kept=kept) as run:
        if run.finished:
            return run.repeat()
        detector = TransferDetector(build(args, device), args, device)
        module = detector.model
        learnt = Inputs(
            module, images_of_maps(data.train_data.images, args), args, device, learnt=True, say=run.log.line
        )
        validation = Inputs(module, images_of_maps(data.val_data.images, args), args, device, learnt=False)
        run.opening(
            f"{args.model}: from {data.source_domain} ({len(learnt)} normal maps) to {', '.join(data.target_domains)}",
            weights=weights_of(module),
            cost=cost_lines(learnt),
            data=args.data_path or f"no --data-path: BUILT-IN synthetic maps, scale {args.scale}",
        )
        for line in without_meaning(args):
            run.log.line(line)
        selects = entry_of(args.model).trained

        def validate() -> float:
            return auroc(score_all(validation, "validation").score, data.val_data.labels)

        state = fit(run, learnt, args, validate if selects else None)
        decision = detector.decision = source_decision(module, data, args, device)
        state.extra["decision"] = decision.plain()
        scores = detector.score(detector.selection_in(data, Choice(batch_size=args.batch_size)))
        results = domain_results(scores, decision)
        if is_main():
            write_json(run.dir / "domains.json", results)
            for domain in domains_of(data):
                write_domain(run.dir, domain, scores, decision, args)
        run.note(
            domains=results,
            source_domain=data.source_domain,
            target_domains=data.target_domains,
            skipped=data.skipped,
        )
        final = run.save(state, len(state.history), BEST) if selects and (run.dir / BEST).is_file() else None
        return run.finish(
            state,
            summary(scores, decision),
            final=final,
            remarks=[*detector.facts.notes, *scale_remarks(args), *sample_remarks(scores)],
            decision=decision.describe(),
        )

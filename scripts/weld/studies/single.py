"""Baseline B: one modality each, by a frozen encoder, by one that learns, by a Transformer over the sensors; and C, the
late and mid fusion of the document's four.

Frozen encoders get a one-class auto-encoder. Those that learn, the document's "fine-tuned" models, are supervised:
cross-entropy of the classes, score = 1 - P(good). Their frozen lower parts run once: the store keeps the states there.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.models.weld.baselines import OneClass, TokenClasses
from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.models.weld.supcon_quad import SensorEncoder
from anomaly_lib.systems.weld.data.manifest import CLASSES, WeldRun
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.options import ENCODERS
from scripts.weld.studies.baselines import (
    AT_ONCE,
    Fitted,
    Pool,
    by_split,
    fit,
    joined,
    parameters,
    protocol,
    standardised,
    weighted,
)
from scripts.weld.studies.options import LadderArgs

# -- encoders that stay frozen ----------------------------------------------------------------------------------------


def one_modality(pool: Pool, args: LadderArgs, name: str) -> Fitted:
    """A one-class auto-encoder on the pooled features of good runs."""
    head = one_class(pool.pooled["train"][name][pool.good() & pool.has(name, "train")], **protocol(args))
    return Fitted(standardised(pool, by_split(lambda split: head(pool.pooled[split][name])), name), parameters(head))


def one_class(good: Tensor, *, epochs: int = 50, batch_size: int = 8, peak_lr: float = 1e-3) -> OneClass:
    """The auto-encoder of baseline B, fitted on the vectors [N, D] of good runs."""
    head = OneClass(dim=good.shape[1])
    head.scale.fit(good)
    fit(head, lambda i: head(good[i]).mean(), len(good), epochs=epochs, batch_size=batch_size, peak_lr=peak_lr)
    return head


# -- encoders that learn ----------------------------------------------------------------------------------------------


def tuned(pool: Pool, args: LadderArgs, name: str) -> Fitted:
    """The encoder of one modality, whose last blocks learn together with a linear head."""
    own = learning_options(args)
    features = below(pool, own)
    tops = features.encoders.learning_copy(own)
    features = features.seen_by(tops)
    for runs in pool.runs.values():
        features.fill(name, runs, AT_ONCE)
    known = pool.pooled["train"][name][pool.has(name, "train")]
    net = TokenClasses(known.shape[1], classes=len(CLASSES))
    net.scale.fit(known)
    net.to(features.device)
    learns = nn.ModuleDict({"head": net, **({} if tops is None else {"top": tops[name]})})

    def tokens(split: str, indices: Tensor) -> Tensor:
        runs: list[WeldRun] = [pool.runs[split][i] for i in indices.tolist()]
        return features.modality(runs, name)

    return supervised(pool, args, name, net, tokens, learns)


def sensors_alone(pool: Pool, args: LadderArgs) -> Fitted:
    """The Transformer encoder over the sensor series, from scratch, in V4's sizes (4 layers, 8 heads, 1024 inside)."""
    net = TokenClasses(args.sensor_dim, classes=len(CLASSES), encoder=SensorEncoder(args))
    return supervised(pool, args, "sensors", net, lambda split, indices: pool.series[split][indices], net)


def supervised(
    pool: Pool, args: LadderArgs, name: str, net: TokenClasses, tokens: Callable[[str, Tensor], Tensor],
    learns: nn.Module,
) -> Fitted:  # fmt: skip
    """Fit `learns` on the training runs that have the modality; `net`, a part of it, reads `tokens(split, indices)`.

    A run without the modality says nothing: its score is the share of defects in TRAIN.
    """
    labels = pool.classes("train")
    known = pool.has(name, "train").nonzero().squeeze(1)
    count = parameters(learns)

    def loss(i: Tensor) -> Tensor:
        return F.cross_entropy(net(tokens("train", known[i])).cpu(), labels[known[i]])

    fit(learns, loss, len(known), lr_of={"top.": args.tuned_lr}, **protocol(args))
    prior = float((labels > 0).float().mean())
    scores, features, voted = {}, {}, torch.empty(0, dtype=torch.long)
    for split in pool.runs:
        with torch.no_grad():
            chunks = torch.arange(len(pool.runs[split])).split(AT_ONCE)
            read = torch.cat([net.features(tokens(split, indices)) for indices in chunks])
            features[split], found = read.cpu(), net.head(read).cpu()
        scores[split] = torch.where(pool.has(name, split), 1 - found.softmax(1)[:, 0], prior)
        voted = found.argmax(1) if split == "test" else voted
    return Fitted(scores, count, classes=voted, features=features)


# -- the document's fusions of its four B -----------------------------------------------------------------------------


def four(pool: Pool, args: LadderArgs) -> tuple[dict[str, Fitted], int]:
    """Three tuned encoders and the sensors' Transformer by modality, and their parameters."""
    parts = {}
    for name in MODALITIES:
        seed_everything(args.seed)  # so that these are the rows of B
        parts[name] = sensors_alone(pool, args) if name == "sensors" else tuned(pool, args, name)
    return parts, sum(part.parameters for part in parts.values())


def late(pool: Pool, args: LadderArgs) -> Fitted:
    """Convex combination of the scores of the four."""
    parts, size = four(pool, args)
    return weighted(pool, [part.scores for part in parts.values()], MODALITIES, size)


def mid(pool: Pool, args: LadderArgs) -> Fitted:
    """One MLP over the features that the four learned, which rest while it learns."""
    parts, size = four(pool, args)
    seed_everything(args.seed)
    vectors = {split: {name: part.features[split] for name, part in parts.items()} for split in pool.runs}
    fitted = joined(pool, vectors, args)
    fitted.parameters += size
    return fitted


def learning_options(args: LadderArgs) -> LadderArgs:
    """The options with encoders that learn as the ladder's B do."""
    own = copy.copy(args)
    own.encoder_training, own.encoder_blocks = args.tuned_training, args.tuned_blocks
    own.trained_encoders = list(ENCODERS)
    return own


def below(pool: Pool, args: LadderArgs) -> WeldFeatures:
    """The features below the blocks that learn, one object for all rows of the ladder."""
    if pool.below is None:
        pool.below = build_features(args, pool.features.device)
    return pool.below

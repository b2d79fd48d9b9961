"""PatchCore (Roth et al., CVPR 2022): distance to the nearest patch of a coreset of normal patches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_lib.config import configure
from anomaly_lib.models.detectors.configs import PatchCoreConfig, summary_of
from anomaly_lib.models.detectors.contract import FeatureDetector, Features, Size
from anomaly_lib.models.detectors.memory_bank import MemoryBank
from anomaly_lib.models.detectors.shapes import gigabytes, maps_by_image, rows_for
from anomaly_lib.ops import (
    cell_of,
    coreset_of_chunks,
    greedy_coreset,
    grid_to_rows,
    neighbourhood_mean,
    projection_size,
    scaled_rows,
    sparse_projection,
    stack_layers,
    upsample_and_smooth,
)
from anomaly_lib.ops.predictions import joined
from anomaly_lib.types import Prediction


class PatchCore(FeatureDetector):
    """Images [B, 3, H, W] -> scores [B] and maps [B, H, W]: how far patches lie from a memory of normal ones.

    ``PatchCore(extractor=net).fit(batches)`` fills the memory. `extractor`, frozen: images -> {layer: [B, C, h, w]}.

    Two published forms share this class. The defaults are anomalib's: 3x3 mean of each layer, layers side by side,
    image score re-weighted by how alone the nearest bank row is. The original's: ``embedding="aggregate"``,
    ``squared=True``, ``scoring="max"``.
    """

    least_images = 2
    # A coreset keeps rows that lie far from all others. Without its own, an image looks stranger than a new one does,
    # whose rows were never asked for: with few images by several standard deviations (docs/manual/decisions.md).
    refitted_below = 60

    def __init__(self, config: PatchCoreConfig | None = None, *, extractor: nn.Module, **options: Any) -> None:
        super().__init__()
        self.config = configure(PatchCoreConfig, config, options)
        self.extractor = extractor
        self.bank = MemoryBank()

    def __repr__(self) -> str:
        return summary_of("PatchCore", PatchCoreConfig, self.config, [f"bank {list(self.bank.rows.shape)}"])

    # -- features ---------------------------------------------------------------------------------------------------

    def embed(self, features: Features) -> Tensor:
        """Patch vectors on the first layer's grid, [B, D, h, w]."""
        how = rows_for(self.config.rows, self.extractor)
        maps = [scaled_rows(maps, how) for maps in maps_by_image(features, self.config.layers)]
        if self.config.embedding == "concat":
            return stack_layers([neighbourhood_mean(x) for x in maps])
        return aggregate_patches(maps, self.config.aggregate_dim)

    # -- fit --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_features(self, batches: Iterable[Features]) -> "PatchCore":
        """Fill the bank. With `chunk_rows` at most about that many patch vectors are held at a time (two-level
        coreset)."""
        generator = torch.Generator().manual_seed(self.config.seed)

        def select(rows: Tensor, wanted: int) -> Tensor:
            return self.select_rows(rows, wanted, generator=generator)

        counts: list[int] = []
        chunks = _gather((self._rows_of(features, counts) for features in batches), self.config.chunk_rows)
        ratio = None if self.config.coreset_size is not None else self.config.coreset_ratio
        rows, places = coreset_of_chunks(chunks, count=self.config.coreset_size, ratio=ratio, select=select)
        self.bank = MemoryBank(rows, _owner_of(places, counts))
        return self

    def _rows_of(self, features: Features, counts: list[int]) -> Tensor:
        embedded = self.embed(features)
        images, views = next(iter(features.values())).shape[:2]
        counts += [views * embedded.shape[2] * embedded.shape[3]] * images
        return grid_to_rows(embedded)

    def sibling(self, share: float) -> "PatchCore":
        size = self.config.coreset_size
        config = self.config if size is None else replace(self.config, coreset_size=max(1, int(share * size)))
        return PatchCore(config, extractor=self.extractor)

    def memory_in_words(self, features: Features, count: int) -> str:
        _, dim, height, width = self.embed(features).shape
        rows = count * height * width
        held = min(rows, self.config.chunk_rows or rows)
        return f"{rows} patches of {dim} numbers, {gigabytes(4 * held * dim)} of memory at a time"

    def select_rows(
        self,
        rows: Tensor,
        wanted: int,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Greedy coreset, on a sparse random projection where that is narrower than the vectors themselves."""
        start = int(torch.randint(len(rows), (1,), generator=generator))
        components = projection_size(len(rows)) if len(rows) > 1 else rows.shape[1]
        if self.config.projection and components < rows.shape[1]:
            rows = rows @ sparse_projection(rows.shape[1], components, generator=generator).to(rows)
        return greedy_coreset(rows, wanted, start=start, progress=self.progress)

    @torch.no_grad()
    def add_images(self, images: Tensor, *, ratio: float | None = None) -> list[int]:
        """Grow the bank by further normal images without the old ones; answers their numbers, for `bank.remove`."""
        counts: list[int] = []
        rows = self._rows_of(self.features_of(images, self.support_views), counts)
        wanted = max(1, int(len(rows) * (self.config.coreset_ratio if ratio is None else ratio)))
        chosen = self.select_rows(rows, wanted, generator=torch.Generator().manual_seed(self.config.seed))
        first = int(self.bank.owners.max()) + 1 if len(self.bank) else 0
        self.bank.add(rows[chosen], _owner_of(chosen, counts) + first)
        return list(range(first, first + len(images)))

    # -- predict ----------------------------------------------------------------------------------------------------

    def score_features(self, features: Features, size: Size) -> Prediction:
        return self._predict(self.embed(features), size)

    @torch.no_grad()
    def left_out_features(self, features: Features, numbers: Sequence[int], size: Size) -> Prediction:
        """As the base says. A row of the bank knows its image, so nothing is fitted again."""
        whole = self.bank
        found = []
        try:
            for embedded, number in zip(self.embed(features).split(1), numbers, strict=True):
                self.bank = whole.without(number)
                found.append(self._predict(embedded, size))
        finally:
            self.bank = whole
        return joined(found)

    def _predict(self, embedded: Tensor, size: Size) -> Prediction:
        """Of patch vectors [B, D, h, w] of images of `size`."""
        patch_map, score = self.score_grid(embedded)
        mode: Literal["nearest", "bilinear"] = "nearest" if self.config.upsample == "nearest" else "bilinear"
        maps = upsample_and_smooth(patch_map, size, sigma=self.config.sigma, mode=mode)
        return Prediction(score, maps, cell=cell_of(patch_map, size))

    def score_grid(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Patch scores [B, h, w] and image scores [B] of patch vectors [B, D, h, w]."""
        batch, _, height, width = embedded.shape
        queries = grid_to_rows(embedded)
        distances, nearest = self.bank.search(queries, self.config.patch_neighbours)  # [B * P, k]
        patches = (distances.square() if self.config.squared else distances).mean(1).reshape(batch, -1)  # [B, P]
        worst = patches.argmax(1)  # [B]
        score = patches.gather(1, worst.unsqueeze(1)).squeeze(1)
        if self.config.scoring == "reweighted" and self.config.neighbours > 1:
            rows = worst + torch.arange(batch, device=worst.device) * height * width
            score = score * self.weight(queries[rows], nearest[rows, 0])
        return patches.reshape(batch, height, width), score

    def weight(self, queries: Tensor, nearest: Tensor) -> Tensor:
        """1 - softmax(|q - n|, n among the nearest bank row m and its neighbours)[m]: near 1 where m is not alone."""
        around = self.bank.neighbours_of(nearest, self.config.neighbours)  # [B, b], m first
        distances = torch.linalg.vector_norm(queries.unsqueeze(1) - self.bank.rows[around].float(), dim=2)
        return 1 - distances.softmax(1)[:, 0]


def aggregate_patches(maps: Sequence[Tensor], dim: int) -> Tensor:
    """The original's patch vectors [B, dim, h, w].

    3x3 patches of each layer are averaged over neighbourhood and channels to `dim` numbers, then the layers together.
    """
    size = maps[0].shape[-2:]
    pooled = []
    for x in maps:
        batch, _, height, width = x.shape
        patches = F.unfold(x, 3, padding=1).reshape(batch, -1, height, width)  # [B, C*9, h_i, w_i]
        if (height, width) != tuple(size):
            patches = F.interpolate(patches, size=size, mode="bilinear", align_corners=False)
        pooled.append(F.adaptive_avg_pool1d(grid_to_rows(patches).unsqueeze(1), dim))  # [B*P, 1, dim]
    rows = F.adaptive_avg_pool1d(torch.cat(pooled, dim=1).flatten(1).unsqueeze(1), dim).squeeze(1)
    return rows.reshape(maps[0].shape[0], *size, dim).permute(0, 3, 1, 2)


def _gather(pieces: Iterable[Tensor], chunk_rows: int | None) -> Iterator[Tensor]:
    """Join pieces to chunks of at least `chunk_rows` rows (all in one without a limit), each held once."""
    held: list[Tensor] = []
    for piece in pieces:
        held.append(piece)
        if chunk_rows is not None and sum(map(len, held)) >= chunk_rows:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


def _owner_of(places: Tensor, counts: Sequence[int]) -> Tensor:
    """Image number of each row place; image i has counts[i] rows."""
    ends = torch.tensor(counts, device=places.device).cumsum(0)
    return torch.searchsorted(ends, places, right=True)

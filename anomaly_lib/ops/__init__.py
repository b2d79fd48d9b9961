"""Pure tensor functions: no state, no files, no flags."""

from anomaly_lib.ops.coreset import coreset_of_chunks, greedy_coreset, projection_size, sparse_projection
from anomaly_lib.ops.distance import (
    exact_distances,
    half_squared_norms,
    mahalanobis,
    nearest_neighbours,
    whitening_matrix,
)
from anomaly_lib.ops.foreground import first_component, foreground
from anomaly_lib.ops.near import best_nearby, nearest_in_each
from anomaly_lib.ops.patches import grid_to_rows, neighbourhood_mean, pad_to_multiple, stack_layers
from anomaly_lib.ops.perlin import perlin_noise, random_perlin
from anomaly_lib.ops.rows import scaled_rows, top_mean, unit_rows
from anomaly_lib.ops.smooth import cell_of, gaussian_blur, gaussian_kernel, upsample_and_smooth, upsample_maps
from anomaly_lib.ops.views import generator_of, six_views, turned
from anomaly_lib.ops.windows import window_partition, window_reverse

__all__ = [
    "best_nearby",
    "cell_of",
    "coreset_of_chunks",
    "exact_distances",
    "first_component",
    "foreground",
    "gaussian_blur",
    "gaussian_kernel",
    "generator_of",
    "greedy_coreset",
    "grid_to_rows",
    "half_squared_norms",
    "mahalanobis",
    "nearest_in_each",
    "nearest_neighbours",
    "neighbourhood_mean",
    "pad_to_multiple",
    "perlin_noise",
    "projection_size",
    "random_perlin",
    "scaled_rows",
    "six_views",
    "sparse_projection",
    "stack_layers",
    "top_mean",
    "turned",
    "unit_rows",
    "upsample_and_smooth",
    "upsample_maps",
    "whitening_matrix",
    "window_partition",
    "window_reverse",
]

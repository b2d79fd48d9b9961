"""Encode once, keep for ever: `extract` fills a `FeatureStore`, `store.rows(keys)` answers tensors.

spec = FeatureSpec(backbone=net.name, weights=net.weights_id, outputs=net.outputs, transform=transform.describe())
store = FeatureStore(spec, root=args.cache_dir, cache=args.cache, notice=log.line)
keys = extract(net.encode, items, store, load=lambda item: transform(load_pixels(item)[0]), track=progress)
features = store.rows(keys)  # {"layer.5": [N, P, C], ...}
"""

from anomaly_lib.features.extract import extract
from anomaly_lib.features.maintenance import StoreInfo, clear_store, store_info
from anomaly_lib.features.spec import FeatureSpec, array_key, file_key, item_key
from anomaly_lib.features.store import FeatureStore, MissingFeatures, default_cache_dir

__all__ = [
    "FeatureSpec",
    "FeatureStore",
    "MissingFeatures",
    "StoreInfo",
    "array_key",
    "clear_store",
    "default_cache_dir",
    "extract",
    "file_key",
    "item_key",
    "store_info",
]

"""Encode once, keep for ever: `extract` fills a `FeatureStore`, `store.rows(keys)` answers tensors.

spec = FeatureSpec(backbone=net.name, weights=net.weights_id, outputs=net.outputs, transform=transform.describe())
store = FeatureStore(spec, root=args.cache_dir, cache=args.cache, notice=log.line)
keys = extract(net.encode, items, store, load=lambda item: transform(load_pixels(item)[0]), track=progress)
features = store.rows(keys)  # {"layer.5": [N, P, C], ...}
"""

from typing import TYPE_CHECKING

from anomaly_lib.lazy import lazy_names

if TYPE_CHECKING:
    from anomaly_lib.features.extraction import extract, extract_tiles, tile_keys
    from anomaly_lib.features.maintenance import StoreInfo, clear_store, store_info
    from anomaly_lib.features.spec import FeatureSpec, array_key, file_key, item_key
    from anomaly_lib.features.store import FeatureStore, MissingFeatures, default_cache_dir

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FeatureSpec": "spec",
        "FeatureStore": "store",
        "MissingFeatures": "store",
        "StoreInfo": "maintenance",
        "array_key": "spec",
        "clear_store": "maintenance",
        "default_cache_dir": "store",
        "extract": "extraction",
        "extract_tiles": "extraction",
        "file_key": "spec",
        "item_key": "spec",
        "store_info": "maintenance",
        "tile_keys": "extraction",
    },
)

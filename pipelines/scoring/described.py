"""What run.json says of the extractors that a run reads, so that it can be put to work where its dataset is not.

record["extractors"] = {modality: described(store) for modality, store in run.stores.items()}
"""

from __future__ import annotations

from typing import Any

from pipelines.parts import Store


def described(store: Store) -> dict[str, Any]:
    """What makes a store's rows, and those that it reads; of weights where they are (their sha256 is in the facts)."""
    return {
        "extractor": store.extractor,
        "config": store.config.model_dump(mode="json", exclude_unset=True),
        "recipe": store.recipe,
        "weights": None if store.weights is None else str(store.weights),
        "source": None if store.source is None else described(store.source),
    }

"""What a run keeps of the extractors that it reads, so that it can be put to work where its dataset is not.

record["extractors"] = {modality: described(store) for modality, store in run.stores.items()}
bring_weights(run.folder, run.stores.values())        # RUN/extractors/<sha256>.safetensors
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from features.atomic import link_or_copy, make_folder
from features.recipe import file_sha256
from pipelines.parts import Store

WEIGHTS_OF: Final = "extractors"


def described(store: Store) -> dict[str, Any]:
    """What makes a store's rows, and those that it reads; of weights where they are (their sha256 is in the facts)."""
    return {
        "extractor": store.extractor,
        "config": store.config.model_dump(mode="json", exclude_unset=True),
        "recipe": store.recipe,
        "weights": None if store.weights is None else str(store.weights),
        "source": None if store.source is None else described(store.source),
    }


def own_weights(folder: Path, sha256: str, named: Path) -> Path:
    """Where the folder of a run keeps the weights file `named`."""
    return folder / WEIGHTS_OF / f"{sha256[:16]}{named.suffix}"


def bring_weights(folder: Path, stores: Iterable[Store]) -> None:
    """The weights of `stores`, and of those that they read, into the folder of a run: second names of the files where
    the disk has these, else copies."""
    for store in stores:
        if isinstance(path := store.weights, Path) and path.is_file():
            own = own_weights(folder, file_sha256(path), path)
            if not own.exists():
                make_folder(own.parent)
                link_or_copy(path, own)
        if store.source is not None:
            bring_weights(folder, [store.source])

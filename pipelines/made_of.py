"""What a training was made of, and whether that is what is there now.

made_of(run, {modality: contents_of(store) for modality, store in run.stores.items()})
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from features.errors import FramepoolError, UserError
from features.manifest import Manifest, contents, read_manifest
from features.recipe import digest
from pipelines.plan import Run, Store


def made_of(run: Run, contents: Mapping[str, str]) -> str:
    """The digest of a training: its recipe, the rows that it reads, the test videos and their labels, and the trainings
    of the runs that it begins with or learns from."""
    from heads.checkpoint import read_run

    before = [read_run(other.seed_folder(other.seeds[0])) or {} for other in run.waits_for if not run.members]
    runs = [[record.get("digest") for record in before]] if before else []
    return digest([run.digest, {m: contents[m] for m in run.stores}, run.plan.tested(run.split), *runs])


def contents_of(store: Store) -> str:
    """What tells the rows of a store from others of its recipe; of one that is not stored, the files that it reads."""
    if store.config.store:
        said: str = _summary(store)["contents"]
        there = all(Path(path).is_file() for path in store.manifests)  # else it was removed since
        found = (read_manifest(store.folder, n) for n in range(store.plan.shard_count))
        return contents(of_recipe(store, manifest) for manifest in found) if there else said
    from extract.fingerprint import Item, list_digest

    return list_digest([Item(v.id, v.path) for v in store.plan.videos.videos], store.plan.root)


def of_recipe(store: Store, manifest: Manifest) -> Manifest:
    """`manifest`, which must be of the store's recipe: a folder may have been renamed. Raises `FramepoolError`."""
    if manifest.digest != store.digest:
        where, fix = f"{store.folder}: shard {manifest.shard}", "give the folder its name back, or remove it"
        raise FramepoolError(
            "shard of another recipe", where=where, expected=store.digest, got=manifest.digest, fix=fix
        )
    return manifest


def freshen(store: Store) -> None:
    """Bring the summary up to date where single shards were made anew since."""
    from pipelines.commands.stage_one import gathered

    if store.config.store and _summary(store)["contents"] != contents_of(store):
        gathered(store)


def stale(runs: Sequence[Run]) -> list[Run]:
    """The finished runs that did not read what is there now, as far as that is known: features may be gone since."""
    from heads.checkpoint import read_run

    found: dict[Path, str] = {}

    def known(store: Store) -> str:
        if store.folder not in found:
            found[store.folder] = contents_of(store)
        return found[store.folder]

    def fresh(run: Run) -> bool:
        records = {seed: read_run(run.folder / f"seed{seed}") or {} for seed in run.seeds}
        if run.members:
            for name, member in run.members.items():
                for seed, record in records.items():
                    own = read_run(member.seed_folder(seed)) or {}
                    if record.get("made_of", {}).get(name, own.get("digest")) != own.get("digest"):
                        return False
            return all(map(fresh, run.members.values()))
        tested = run.plan.tested(run.split)
        if any(record.get("tested", tested) != tested for record in records.values()):
            return False
        if not all(read_run(other.seed_folder(other.seeds[0])) for other in run.waits_for):
            return True
        if not all(store.config.store and Path(store.summary).is_file() for store in run.stores.values()):
            return True
        wanted = made_of(run, {m: known(store) for m, store in run.stores.items()})
        return all(record.get("digest") == wanted for record in records.values())

    return [run for run in runs if not fresh(run)]


def _summary(store: Store) -> Any:
    if not Path(store.summary).is_file():
        fix = f"run `framepool extract {store.plan.dataset} {store.arguments}` first"
        raise UserError("features are not complete", where=store.folder, expected="a store.json in it", fix=fix)
    return json.loads(Path(store.summary).read_bytes())

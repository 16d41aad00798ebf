"""A run's files: weights that know their classes, the state to resume from, and a head loaded back.

head, run = load_head(Path("work/demo/runs/tsn-split1-0123abcd/seed0"), classes=classes)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, Self

import torch
from torch import Tensor

import heads
from extract.networks.weights import NetworkError, fill, load_state, same_shapes, save_state
from features.atomic import LOCK_WAIT_S, Lock, make_folder, write_bytes, write_parts
from features.errors import Busy, DamagedStore, FramepoolError, UserError, printable
from heads.base import Head
from heads.config import BaseConfig
from heads.parallel import Ranks
from heads.record import checked

MAX_BYTES = 64 << 20  # of run.json; a hostile gigabyte stops here
_LARGE = 64 << 20  # bytes of a state that takes long enough to write
WEIGHTS, NETWORK, RUN, RESUME = "weights.safetensors", "network.safetensors", "run.json", "last.pt"
LOCK = "run.lock"


@contextmanager
def alone(folder: Path, own: Ranks) -> Iterator[None]:
    """Nobody else writes the run in `folder`, which is made where it is missing, while inside. Of several processes the
    first one holds the lock, and where it cannot all of them say so: none waits for one that has given up."""
    refused: FramepoolError | None = None
    with ExitStack() as stack:
        if own.first:
            try:
                stack.enter_context(Lock(make_folder(folder) / LOCK, LOCK_WAIT_S))
            except FramepoolError as error:
                refused = error
        if not own.says(refused is None):
            raise refused or Busy("the first process cannot write the run", where=folder, fix="see what it says")
        yield


def save_head(folder: Path, head: Head, *, kind: str, classes: Sequence[str]) -> None:
    """Write the head's weights with the names of its classes, and whatever files it adds."""
    for name, data in head.extra_files().items():
        write_bytes(folder / name, data)
    write_bytes(folder / WEIGHTS, save_state(head.state_dict(), {"kind": kind, "classes": list(classes)}))


def load_head(
    folder: Path, *, classes: Sequence[str] | None = None, device: str | torch.device = "cpu"
) -> tuple[Head, dict[str, Any]]:
    """The trained head of a finished run, in evaluation mode, and its run.json. Refuses another list of `classes`."""
    run = read_run(folder)
    if run is None:
        raise FramepoolError("no finished run here", where=folder, expected=RUN, fix="train it first")
    if "members" in run:
        fix = f"take {' and '.join(map(str, run['members'].values()))}"
        raise UserError("a fusion has no weights of its own", where=folder, fix=fix)
    path = folder / WEIGHTS
    try:
        state, notes = load_state(path)
        if classes is not None:
            check_classes(path, notes.get("classes", []), classes)
        config: BaseConfig = heads.HEADS[run["kind"]][1].model_validate(run["config"])
        if (folder / NETWORK).exists():
            config = config.with_network(str(folder / NETWORK))
        shapes = {modality: tuple(shape) for modality, shape in run["shapes"].items()}
        wanted = config, shapes, len(run["classes"])
        if config.encoder is None and getattr(config, "network", None) is None:
            with torch.device("meta"):  # sizes that the weights do not have are refused before memory is asked for
                same_shapes(heads.from_config(*wanted, classes=run["classes"]).state_dict(), state, str(path))
        head = heads.from_config(*wanted, classes=run["classes"])
        fill(head, state, str(path))
    except (NetworkError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        fix = "remove the run and train it again"
        raise DamagedStore("run does not load", where=folder, got=error, fix=fix) from None
    return head.to(device).eval(), run


def begin_from(head: Head, folder: Path, classes: Sequence[str], larger: Callable[[], Head]) -> None:
    """Put the weights of the finished run in `folder` into `head`. Where it has other classes, what follows them stays
    as it is: of other sizes in `larger`, the same head for a class more. Refuses a run of another head."""
    if read_run(folder) is None:
        raise FramepoolError("no finished run here", where=folder, expected=RUN, fix="train it first")
    path, own = folder / WEIGHTS, head.state_dict()
    try:
        state, notes = load_state(path)
        if notes.get("classes", []) != list(classes):
            state |= {key: own[key] for key, value in larger().state_dict().items() if value.shape != own[key].shape}
        fill(head, state, str(path))
    except NetworkError as error:
        fix = "begin with a run of a head of the same kind and options"
        raise UserError("a run that this head cannot begin with", where=folder, got=error, fix=fix) from None


def check_classes(path: Path, own: Sequence[str], given: Sequence[str]) -> None:
    """Refuse to use a head with another class list than the one that it was trained for, even one in another order."""
    if list(own) == list(given):
        return
    fix = "score with the class list of the head's own dataset, or train it again"
    if len(own) != len(given):
        raise UserError("another class list", where=path, expected=f"{len(own)} classes", got=len(given), fix=fix)
    k = next(k for k, (a, b) in enumerate(zip(own, given, strict=True)) if a != b)
    raise UserError("another class list", where=path, expected=f"{own[k]!r} as class {k}", got=repr(given[k]), fix=fix)


def read_run(folder: Path) -> dict[str, Any] | None:
    """run.json, which is written last: None where the run is not finished."""
    path = folder / RUN
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size} bytes, and at most {MAX_BYTES} are read")
        return checked(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedStore(
            "run does not load", where=path, got=error, fix="remove the run and train it again"
        ) from None


def save_resume(folder: Path, state: Mapping[str, Any]) -> None:
    """Keep what an interrupted training goes on from; the previous state stays until this one is whole."""
    with write_parts(folder / RESUME) as stream:  # half a gigabyte in memory first would take longer than on disk
        torch.save(dict(state), stream)


class Keeper:
    """Keeps the states of a training: a copy of a large one is written by a thread while training goes on, and another
    only when that is done. What went wrong is raised where the next is kept, or at the end of a `with` that ends well.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._wait()
        except FramepoolError:
            if kind is None:  # else what ended the training is what there is to tell
                raise

    def keep(self, state: Mapping[str, Any]) -> None:
        """Have `state` written as it is now."""
        self._wait()
        if _bytes(state) < _LARGE:
            save_resume(self._folder, state)
        else:
            self._writing = self._thread.submit(save_resume, self._folder, _copied(state))

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def load_resume(folder: Path, run: Mapping[str, Any], log: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of an interrupted training of this `run`, as far as the state says whose it is; None where there is
    none, or only one of another run or a damaged one, which `log` is told. Raises `FramepoolError` where one cannot be
    read: it may be whole, and another would take its place.
    """
    path, damage = folder / RESUME, "its numbers are not all finite"
    try:
        with path.open("rb") as stream:
            state: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
        for key, value in run.items():
            if (got := state.get(key, value)) != value:
                said = printable(f"{path}: {key} {got!r}, not {value!r}")
                log(f"begins anew, the kept state is of another run: {said}")
                return None
        if _finite([state["head"], state["optimizer"]["state"]]):
            return state
    except FileNotFoundError:
        return None
    except (OSError, MemoryError) as error:
        fix = "see to it that it can be read, or remove it: then training begins anew"
        raise FramepoolError("kept state cannot be read", where=path, got=repr(error), fix=fix) from None
    except Exception as error:  # whatever damage makes the reader raise: training then begins anew, to the same end
        damage = shorten(str(error), 160, placeholder=" ...") or repr(error)
    log(f"begins anew, the kept state is damaged: {printable(path)}: {printable(damage)}")
    return None


def _finite(value: Any) -> bool:
    """Whether every number of every tensor inside is one."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return all(map(_finite, inside))


def _bytes(value: Any) -> int:
    """Of the tensors inside."""
    if isinstance(value, Tensor):
        return value.nbytes
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return sum(map(_bytes, inside))


def _copied(value: Any) -> Any:
    """The same with copies of the tensors inside, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(inside) for key, inside in value.items()}
    return [_copied(inside) for inside in value] if isinstance(value, list) else value


def copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of weights on the CPU that later steps do not change."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}

"""Where a dataset's videos and annotation files are; one config a published format, told apart by `format`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from features.recipe import Config


class Ucf101Source(Config):
    """UCF101: `lists` is the folder with classInd.txt, trainlist0k.txt and testlist0k.txt; splits 1, 2, 3."""

    format: Literal["ucf101"]
    root: Path
    lists: Path


class Hmdb51Source(Config):
    """HMDB51: `lists` is the folder with ``<class>_test_split{1,2,3}.txt``; splits 1, 2, 3."""

    format: Literal["hmdb51"]
    root: Path
    lists: Path


class KineticsSource(Config):
    """Kinetics: CSV files ``label,youtube_id,time_start,time_end,split``; the split `val` trains on `train`, tests on
    `val`."""

    format: Literal["kinetics"]
    root: Path
    train: Path
    val: Path


class CharadesSource(Config):
    """Charades: the two CSV files and Charades_v1_classes.txt; several labels a video; split 1."""

    format: Literal["charades"]
    root: Path
    train: Path
    test: Path
    classes: Path


class FolderSource(Config):
    """A folder per class under `root`, or under ``root/train`` and one of ``root/test``, ``root/val``; split 1.

    Without those, a share `test_share` of each class is held out: whole videos, chosen by a hash of their ids, so that
    more videos move none from one side to the other.
    """

    format: Literal["folder"]
    root: Path
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.25


class TableSource(Config):
    """A CSV with the columns path, label, and a column for each split holding train, test or nothing; group optional.

    Columns beside path, label and group are splits. `multi_label`: label holds any number of labels between semicolons.
    """

    format: Literal["table"]
    root: Path
    file: Path
    multi_label: bool = False
    classes: tuple[str, ...] | None = Field(None, description="the classes in order; default: sorted, as they occur")

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("each class once")
        return self


VideoSource = Annotated[
    Ucf101Source | Hmdb51Source | KineticsSource | CharadesSource | FolderSource | TableSource,
    Field(discriminator="format"),
]

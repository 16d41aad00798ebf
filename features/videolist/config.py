"""Where a dataset's videos and annotations are: the `videos` part of a config, told apart by `format`.

videos: {format: ucf101, root: data/ucf101/videos, lists: data/ucf101/ucfTrainTestlist}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from features.recipe import Config


class Source(Config):
    """What every source has."""

    root: Path = Field(description="folder that the listed names are relative to")
    only: tuple[str, ...] = Field((), description="keep the videos of these classes alone; all where none is named")
    shots: PositiveInt | None = Field(
        None, description="train on so many videos a class, each the first of another group; the others are not used"
    )


class Ucf101(Source):
    """UCF101: ``classInd.txt``, ``trainlist0k.txt`` and ``testlist0k.txt``, k = 1, 2, 3."""

    format: Literal["ucf101"]
    lists: Path = Field(description="folder of the lists")


class Hmdb51(Source):
    """HMDB51: ``<class>_test_split<k>.txt``, k = 1, 2, 3; a video is at ``<root>/<class>/<name>``."""

    format: Literal["hmdb51"]
    lists: Path = Field(description="folder of the lists")


class Kinetics(Source):
    """Kinetics: CSV files of label, youtube_id, time_start, time_end, split; a video is at ``<root>/<label>/``."""

    format: Literal["kinetics"]
    train: Path = Field(description="what the splits `val` and `test` train on")
    val: Path = Field(description="what the split `val` tests on")
    test: Path | None = Field(None, description="what the split `test` tests on; with labels")
    subset: tuple[Path, ...] = Field(
        (),
        description="files that name what is kept, one a line: classes, or clips by YouTube id; Mini-Kinetics is the "
        "file of its 200 classes, or those of its ids",
    )

    @field_validator("subset", mode="before")
    @classmethod
    def _one_file(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class Charades(Source):
    """Charades: several actions a video, or none; one split, "1"."""

    format: Literal["charades"]
    train: Path = Field(description="Charades_v1_train.csv")
    test: Path = Field(description="Charades_v1_test.csv")
    classes: Path = Field(description="Charades_v1_classes.txt")


TestShare = Annotated[float, Field(gt=0, lt=1, description="share of groups held out, where no split is given")]


class Folder(Source):
    """A folder per class, below ``train`` and ``val`` or ``test`` where there are such folders."""

    format: Literal["folder"]
    test_share: TestShare = 0.25
    group: str | None = Field(None, description="regular expression; its first group, searched in an id, is the group")

    @field_validator("group")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from None
        if groups < 1:
            raise ValueError("a regular expression with a group, such as '_(g[0-9]+)_'")
        return pattern


class Table(Source):
    """A CSV with the columns path, label, any of split, split1, split2, ..., and group."""

    format: Literal["table"]
    list: Path = Field(description="the CSV file")
    classes: Path | None = Field(None, description="all class names in order, one a line; sorted names where not given")
    multi_label: bool = Field(False, description="labels are separated by ;")
    test_share: TestShare = 0.25


VideoSource = Annotated[Ucf101 | Hmdb51 | Kinetics | Charades | Folder | Table, Field(discriminator="format")]

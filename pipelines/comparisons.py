"""Comparisons: pairs of heads that a paper puts in an order, and whether that order holds here.

comparisons:
  - claim: "VTN, Tables 3 and 4: RGB with its differences is ahead of RGB"
    better: fused
    than: rgb
    datasets: [ucf6-trained, ucf6-trained-5shot]   # each has both heads; this dataset alone where none is named
    remarks: {ucf6-trained-5shot: "what an experiment showed about it"}

No torch here: the Snakefile parses them.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from features.recipe import Config


class Comparison(Config):
    """See the module. The page gives both scores, their difference with its interval, and whether the order holds."""

    claim: str = Field(description="what the paper says, and where")
    better: str = Field(description="the head that is said to be ahead")
    than: str
    datasets: tuple[str, ...] = Field((), description="where to look; this dataset where none is named")
    settings: str = Field("", description="in what the trainings here are less than the paper's")
    remarks: dict[str, str] = Field({}, description="what to say about it, by dataset")

    @model_validator(mode="after")
    def _remarks_fit(self) -> Self:
        if self.better == self.than:
            raise ValueError(f"two heads in a comparison, not {self.better} twice")
        for name in self.remarks:
            if name not in self.datasets:
                raise ValueError(f"one of its datasets ({', '.join(self.datasets)}) in remarks, not {name!r}")
        return self

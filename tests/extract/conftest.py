"""One process converts the networks of all tests here, as one does for all networks of a job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from extract.convert import converter


@pytest.fixture(scope="session", autouse=True)
def one_converter() -> Iterator[None]:
    with converter():
        yield

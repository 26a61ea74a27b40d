from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks() -> Generator[RankPool, None, None]:
    """Three processes; a test uses as many as it wants."""
    from rank_pool import RankPool  # torch takes seconds to start: only where it is used

    pool = RankPool(3)
    yield pool
    pool.close()

from collections.abc import Generator

import pytest


@pytest.fixture(scope="session")
def ranks() -> Generator["RankPool", None, None]:  # noqa: F821  # starting torch takes seconds: only where it is used
    """Three processes; a test uses as many as it wants."""
    from rank_pool import RankPool

    pool = RankPool(3)
    yield pool
    pool.close()

"""The upstream of the tests of what is fetched ahead."""

from collections.abc import AsyncIterator

import pytest

from tests.proxy.ahead.far_cache import FarCache, far_cache


@pytest.fixture
async def far() -> AsyncIterator[FarCache]:
    async with far_cache() as cache:
        yield cache

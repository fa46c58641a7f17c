"""The loop's own measure of how long it stood still."""

import asyncio
import time

import pytest

from coderepairrl.rollout.standstill import Standstill

STOOD_S = 0.3
WAYS = {  # what is awaited between begin and the question
    "it is asked at once": 0.0,
    "its task has run since": 0.1,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_sees_a_callback_that_computes(way):
    async def main():
        with Standstill() as standstill:
            await asyncio.sleep(0.05)
            time.sleep(STOOD_S)
            await asyncio.sleep(WAYS[way])
            seen_s = standstill.longest_s
            standstill.begin()
            return seen_s, standstill.longest_s

    seen_s, after_s = asyncio.run(main())
    assert seen_s > STOOD_S - 0.05 and after_s < seen_s


def test_waiting_is_no_standstill():
    """Beside it the same loop stands still for longer: the one is seen, and not the other."""

    async def main():
        with Standstill() as standstill:
            await asyncio.sleep(STOOD_S)
            waited_s = standstill.longest_s
            time.sleep(STOOD_S)
            return waited_s, standstill.longest_s

    waited_s, stood_s = asyncio.run(main())
    assert waited_s < stood_s


def test_it_ends_with_its_block():
    async def main():
        with Standstill():
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1

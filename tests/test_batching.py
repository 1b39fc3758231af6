"""Requests that arrive together are one batch: sizes, order, bounds, failures, and the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from convlens.batching import Batcher, Closed, Failed, Full


class Network:
    """Doubles numbers; records its batches, and waits at a gate where there is one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        assert self.gate.wait(10)
        if -1 in items:
            raise ValueError("a bad one")
        if -2 in items:
            raise SystemExit  # a network of somebody's own may do anything
        if -3 in items:
            return []
        if -4 in items:
            raise StopIteration
        return [2 * item for item in items]

    async def closed(self, count: int) -> None:
        """Wait until `count` batches have begun."""
        while len(self.batches) < count:
            await asyncio.sleep(0.001)


async def behind_a_gate(network: Network, batcher: Batcher[int, int], calls: Sequence[Sequence[int]]) -> list[object]:
    """What each call gives where all of them wait while the network is busy with a first one."""
    network.gate.clear()
    first = asyncio.create_task(batcher.run([0]))
    await network.closed(1)
    others = [asyncio.create_task(batcher.run(call)) for call in calls]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    network.gate.set()
    assert await first == ([0], 1)
    return await asyncio.gather(*others, return_exceptions=True)


def test_what_arrives_together_is_one_batch_and_each_gets_its_own() -> None:
    network = Network()
    batcher = Batcher(network, max_batch=8)
    calls = [[1], [2, 3], [4], [5, 6, 7], [8, 9, 10]]
    told = asyncio.run(behind_a_gate(network, batcher, calls))
    assert told == [([2], 8), ([4, 6], 8), ([8], 8), ([10, 12, 14], 8), ([16, 18, 20], 8)]
    assert network.batches == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10]]
    assert len(network.threads) == 1
    assert batcher.close()


def test_a_request_larger_than_a_batch_is_computed_in_several() -> None:
    batcher = Batcher(Network(), max_batch=3)
    rows, largest = asyncio.run(batcher.run(range(10)))
    assert rows == [2 * i for i in range(10)]
    assert largest == 3
    assert asyncio.run(batcher.run([])) == ([], 0)
    assert batcher.close()


def test_many_callers_at_once_get_their_own_rows() -> None:
    network, sizes = Network(), list[int]()
    batcher = Batcher(network, max_batch=16, max_wait=0.001, observe=lambda size, _: sizes.append(size))

    async def caller(at: int) -> None:
        for i in range(20):
            own = [1000 * at + 10 * i + j for j in range(1 + i % 3)]
            assert (await batcher.run(own))[0] == [2 * number for number in own]

    async def all_of_them() -> None:
        await asyncio.gather(*(caller(i) for i in range(32)))

    asyncio.run(all_of_them())
    asyncio.run(all_of_them())  # another event loop
    assert sum(sizes) == sum(map(len, network.batches)) == 2 * 32 * 39
    assert 1 < max(sizes) <= 16
    assert batcher.close()


def test_a_full_queue_refuses_and_takes_again_when_there_is_room() -> None:
    network = Network()
    batcher = Batcher(network, max_queue=3)
    told = asyncio.run(behind_a_gate(network, batcher, [[1, 2], [3, 4], [5], [6]]))
    assert [told[0], told[2]] == [([2, 4], 3), ([10], 3)]
    assert isinstance(told[1], Full)  # it is taken whole or not at all
    assert isinstance(told[3], Full)
    assert asyncio.run(batcher.run([7])) == ([14], 1)
    assert batcher.close()


@pytest.mark.parametrize("bad", [-1, -2, -3, -4])
def test_a_failure_reaches_its_batch_and_no_other(bad: int) -> None:
    network = Network()
    batcher = Batcher(network, max_batch=2)
    told = asyncio.run(behind_a_gate(network, batcher, [[1], [bad], [3, 4], [5, bad, 6, 7]]))
    assert isinstance(told[0], Failed)  # it was in one batch with the bad one
    assert isinstance(told[1], Failed)
    assert told[2] == ([6, 8], 2)
    assert isinstance(told[3], Failed)
    assert [6, 7] not in network.batches  # the rest of a request that failed is not computed
    assert asyncio.run(batcher.run([1])) == ([2], 1)
    assert batcher.close()


def test_the_first_does_not_wait_and_those_in_company_do() -> None:
    network = Network()
    batcher = Batcher(network, max_batch=4, max_wait=0.5)

    async def alone_then_together() -> tuple[float, float, float]:
        began = time.perf_counter()
        await batcher.run([1])
        alone = time.perf_counter() - began
        await asyncio.gather(*(batcher.run([i]) for i in range(4)))  # full, so not waited for
        full = time.perf_counter() - began - alone
        await batcher.run([1])  # the one before had company, so this one is waited for, in vain
        return alone, full, time.perf_counter() - began - alone - full

    alone, full, waited = asyncio.run(alone_then_together())
    assert alone < 0.4
    assert full < 0.9  # the first of the four may have been computed alone, the others then wait for a fourth
    assert waited > 0.4
    assert batcher.close()


def test_who_goes_away_is_not_computed() -> None:
    network = Network()
    batcher = Batcher(network)

    async def one_leaves() -> None:
        network.gate.clear()
        first = asyncio.create_task(batcher.run([0]))
        await network.closed(1)
        leaving, staying = asyncio.create_task(batcher.run([1])), asyncio.create_task(batcher.run([2]))
        await asyncio.sleep(0)
        leaving.cancel()
        network.gate.set()
        assert await first == ([0], 1)
        assert await staying == ([4], 1)
        with pytest.raises(asyncio.CancelledError):
            await leaving

    asyncio.run(one_leaves())
    assert network.batches == [[0], [2]]
    assert batcher.close()


def test_closing_computes_what_waits_and_takes_no_more() -> None:
    network = Network()
    batcher = Batcher(network, max_batch=2, max_wait=5)

    async def closing() -> list[object]:
        network.gate.clear()
        calls = [asyncio.create_task(batcher.run([i])) for i in range(5)]
        await network.closed(1)
        end = asyncio.create_task(asyncio.to_thread(batcher.close, 10))
        await asyncio.sleep(0.05)
        with pytest.raises(Closed):
            await batcher.run([9])
        assert not batcher.close(0.01)  # it has not ended yet
        network.gate.set()
        assert await end
        return await asyncio.gather(*calls)

    assert [rows for rows, _ in asyncio.run(closing())] == [[0], [2], [4], [6], [8]]


def test_a_caller_whose_loop_has_ended_harms_nobody() -> None:
    network = Network()
    batcher = Batcher(network)

    async def leave() -> None:
        network.gate.clear()
        task = asyncio.create_task(batcher.run([1]))
        await network.closed(1)
        task.cancel()

    asyncio.run(leave())
    network.gate.set()
    assert asyncio.run(batcher.run([2])) == ([4], 1)
    assert batcher.close()


def test_as_many_as_before_are_waited_for_and_no_more() -> None:
    """Three who ask again and again, where a batch has room for more: none waits for those who are not there."""
    network = Network()
    batcher = Batcher(network, max_batch=32, max_wait=0.5)

    async def together() -> float:
        await asyncio.gather(*(batcher.run([i]) for i in range(3)))
        began = time.perf_counter()
        for _ in range(10):
            await asyncio.gather(*(batcher.run([i]) for i in range(3)))
        return time.perf_counter() - began

    assert asyncio.run(together()) < 2  # ten times half a second, where the batch is waited for to be full
    assert batcher.close()


def test_who_goes_away_leaves_its_room_and_the_queue_is_told() -> None:
    network, told = Network(), list[int]()
    batcher = Batcher(network, max_queue=2, queued=told.append)

    async def leave_and_come() -> None:
        network.gate.clear()
        first = asyncio.create_task(batcher.run([0]))
        await network.closed(1)
        leaving = asyncio.create_task(batcher.run([1, 2]))
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await batcher.run([3])
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert len(batcher) == 0
        staying = asyncio.create_task(batcher.run([4, 5]))
        await asyncio.sleep(0)
        network.gate.set()
        assert await first == ([0], 1)
        assert (await staying)[0] == [8, 10]

    asyncio.run(leave_and_come())
    assert network.batches == [[0], [4, 5]]
    assert told == [1, 0, 2, 0, 2, 0]
    assert batcher.close()

"""What many machines take: against a simulation of them, task by task."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure_nb.compute.costs import Step, Workers, costs


def shared(tasks: list[float], workers: int, cores: int) -> float:
    """Seconds until the last task is done, where each that runs gets as much of the cores as any other."""
    waiting, running, clock = tasks[::-1], list[float](), 0.0
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(waiting.pop())
        share = min(1.0, cores / len(running))
        first = min(running)
        clock += first / share
        running = [left - first for left in running if left > first]
    return clock


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 2))
def test_workers_that_share_cores(tasks: int, count: int, cores: int, seconds: float) -> None:
    found = 3600 * costs([Step("s", tasks, seconds, 1)], Workers(count, cores=cores, task=0.1, scheduler=0)).hours["s"]
    assert found == pytest.approx(shared([seconds + 0.1] * tasks, count, cores))


def simulated(step: Step, workers: Workers) -> float:
    """Seconds until the last task is done: each goes to the worker that is free first, once the scheduler is."""
    free, handed, last = [0.0] * workers.count, 0.0, 0.0
    for first in range(0, step.units, step.together):
        handed += workers.scheduler
        begin = max(handed, heapq.heappop(free))
        end = begin + min(step.together, step.units - first) * step.seconds + workers.task
        heapq.heappush(free, end)
        last = max(last, end)
    return last


@given(st.integers(1, 3000), st.integers(1, 64), st.integers(1, 40), st.floats(0.01, 2), st.floats(0, 0.05))
def test_as_a_simulation_task_by_task(units: int, together: int, count: int, seconds: float, scheduler: float) -> None:
    step, workers = Step("s", units, seconds, together), Workers(count, task=0.01, scheduler=scheduler)
    found = 3600 * costs([step], workers).hours["s"]
    expected = simulated(step, workers)
    task = min(together, units) * seconds + 0.01
    assert found <= expected + task + 1e-9  # the last task of all may be a smaller one
    assert (
        expected <= found + task + min(count, -(-units // together)) * scheduler + 1e-9
    )  # while the first round begins


def test_bytes_and_money() -> None:
    steps = [Step("sweep", 1000, 1.0, 100, read=1e5), Step("circuits", 200, 3.6, 100, moved=4e3)]
    table = costs(steps, Workers(10, price=2.0, sent=1e8, task=0.0, scheduler=0.0))
    assert table.tasks.tolist() == [10, 2, 12]
    assert table.hours["sweep"] == pytest.approx(100 / 3600)
    assert table.hours["circuits"] == pytest.approx(0.1)
    assert table.loc["total", ["read", "moved"]].tolist() == pytest.approx([1e8, 8e5 + 1e9])
    assert table.money["total"] == pytest.approx(20 * (100 / 3600 + 0.1 + 1 / 3600))


def test_they_start_once() -> None:
    steps = [Step("a", 4, 1.0, 1), Step("b", 4, 1.0, 1)]
    table = costs(steps, Workers(4, cores=2, price=1.0, start=9.0, task=0.0, scheduler=0.0))
    assert table.hours.tolist() == pytest.approx([2 / 3600, 2 / 3600, (4 + 18) / 3600])
    assert table.money["total"] == pytest.approx(4 * 22 / 3600)


@pytest.mark.parametrize(
    ("limit", "how"),
    [("scheduler", {"scheduler": 60.0}), ("storage", {"storage": 1e3}), ("network", {"network": 1.0}), ("workers", {})],
)
def test_what_limits(limit: str, how: dict[str, float]) -> None:
    table = costs([Step("s", 100, 0.1, 10, read=1e4, moved=10.0)], Workers(5, **how))
    assert table.limits["s"] == limit


def test_no_steps_are_what_is_sent_alone() -> None:
    table = costs([], Workers(2, sent=1e9))
    assert table.loc["total", ["tasks", "moved"]].tolist() == [0, 2e9]

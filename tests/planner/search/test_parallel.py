"""Many at once: in order, whoever is ready first."""

from threading import Barrier

import pytest

from planner.search.parallel import Workers


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_answers_come_in_the_order_of_what_was_asked(num_threads: int) -> None:
    said: list[str] = []
    workers = Workers(num_threads=num_threads, on_progress=said.append)
    assert workers.each("squares", lambda n: n * n, range(7)) == [n * n for n in range(7)]
    assert said == [f"squares: {n} of 7" for n in range(1, 8)]


def test_they_work_beside_each_other() -> None:
    both = Barrier(2, timeout=10.0)
    assert Workers(num_threads=2).each("meet", lambda _: both.wait() >= 0, range(2)) == [True, True]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_first_error_in_order_is_raised(num_threads: int) -> None:
    def work(n: int) -> int:
        if n in (2, 4):
            raise ValueError(f"no {n}")
        return n

    with pytest.raises(ValueError, match="no 2"):
        Workers(num_threads=num_threads).each("fail", work, range(6))


def test_nothing_to_do() -> None:
    assert Workers(num_threads=4).each("nothing", str, []) == []

"""Work on many modules at once."""

import ctypes

import pytest

from lcm_arith import pool


def test_results_come_in_order_and_an_error_where_it_arose() -> None:
    assert list(pool.ahead(lambda n: n * n, range(50), threads=3)) == [n * n for n in range(50)]
    taken = pool.ahead(lambda n: 60 // (5 - n), range(50), threads=3)
    assert [next(taken) for _ in range(5)] == [12, 15, 20, 30, 60]
    with pytest.raises(ZeroDivisionError):
        next(taken)


def test_a_c_library_without_the_setting_for_memory_does_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    pool._keep_memory.cache_clear()
    assert list(pool.ahead(abs, [-1, 2])) == [1, 2]

"""Working ahead: results come in order, and later than they are asked for."""

import pytest

from mpt_jax.data.in_flight import in_flight


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("depth", [0, 2])
def test_results_come_in_order_each_once_more_are_under_way(number, depth):
    started = []

    def results():
        for value in range(number):
            started.append(value)
            yield value

    read = [(value, len(started)) for value in in_flight(results(), depth)]
    assert [value for value, _ in read] == list(range(number))
    assert [begun for _, begun in read] == [min(value + 1 + depth, number) for value in range(number)]


def test_an_error_comes_after_the_results_before_it_were_asked_for():
    def results():
        yield 1
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        list(in_flight(results()))

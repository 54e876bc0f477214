"""Turns: round the clients, and in order within one."""

import hypothesis
import hypothesis.strategies as st
import pytest

from jvdm.serving.line import Line

ITEMS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=20)


def filled(items):
    line = Line()
    for place, (client, _) in enumerate(items):
        line.add(client, (client, place))
    return line


def emptied(line, **asked):
    taken = []
    while (item := line.take(**asked)) is not None:
        taken.append(item)
    return taken


@hypothesis.given(ITEMS)
def test_what_is_ahead_is_what_is_taken_before(items):
    line = filled(items)
    ahead = {item: line.ahead(item[0], item) for item in line}
    assert len(line) == len(items)
    assert [ahead[item] for item in emptied(line)] == list(range(len(items)))
    assert len(line) == 0


@hypothesis.given(ITEMS)
def test_clients_have_equal_shares_and_their_own_order(items):
    taken = emptied(filled(items))
    own = [[place for client, place in taken if client == name] for name in "abc"]
    assert all(places == sorted(places) for places in own)
    for end in range(len(taken)):
        counts = {name: sum(client == name for client, _ in taken[:end]) for name in "abc"}
        waits = [name for name in "abc" if counts[name] < len(own["abc".index(name)])]
        assert all(counts[name] >= max(counts.values()) - 1 for name in waits)


PEOPLE = st.lists(st.sampled_from(["a", "a x", "a y", "b", "b x", "c"]), max_size=20)


@hypothesis.given(PEOPLE)
def test_visitors_divide_the_turns_of_their_client(names):
    """And get no more of them: clients are served as if each were one person."""
    line, alone = filled([(name, 0) for name in names]), Line()
    for place, name in enumerate(names):
        alone.add(name[0], (name[0], place))
    ahead = {item: line.ahead(item[0], item) for item in line}
    taken = emptied(line)
    assert [ahead[item] for item in taken] == list(range(len(names)))
    assert [name[0] for name, _ in taken] == [name for name, _ in emptied(alone)]
    for client in "abc":
        own = [name for name, _ in taken if name[0] == client]
        for end in range(len(own)):
            counts = {name: own[:end].count(name) for name in own}
            waits = [name for name in own[end:]]
            assert all(counts[name] >= max(counts.values()) - 1 for name in waits)


def test_a_client_has_what_its_visitors_wait_for():
    line = filled([("a x", 0), ("a y", 1), ("b", 2)])
    assert (line.count("a x"), line.count("a"), line.count("b"), len(line)) == (2, 2, 1, 3)


def test_an_item_that_is_not_ready_is_passed_and_one_that_does_not_suit_is_not():
    line = filled([("a", 0), ("a", 1), ("b", 2)])
    assert line.take(ready=lambda item: item[1] != 0) == ("a", 1)
    line.add("a", ("a", 3))
    assert line.take(suits=lambda item: item[1] == 3) is None
    assert line.take(suits=lambda item: item[0] == "a") == ("a", 0)


def test_what_is_put_back_has_the_next_turn():
    line = filled([("a", 0), ("b", 1)])
    item = line.take()
    line.add("a", item, first=True)
    assert emptied(line) == [("a", 0), ("b", 1)]


def test_a_removed_item_has_no_turn():
    line = filled([("a", 0), ("b", 1)])
    line.remove("a", ("a", 0))
    assert emptied(line) == [("b", 1)] and line.count("a") == 0
    with pytest.raises(KeyError):
        line.remove("a", ("a", 0))

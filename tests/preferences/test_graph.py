"""The graph functions against enumeration of every simple path."""

from graphlib import CycleError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.preferences.graph import longest_paths, reachable, without_cycles

edges_of_graphs = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15)
edges_of_dags = st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda e: e[0] < e[1]))


def paths(edges, start, seen=()):
    """Every path from `start` that visits no node twice, as tuples of nodes; it may close on its own start."""
    for tail, head in edges:
        if tail == start and head not in seen:
            yield (start, head)
            yield from ((start, *rest) for rest in paths(edges, head, (*seen, head)))


@given(edges_of_graphs)
def test_a_node_reaches_the_ends_of_its_paths(edges):
    nodes = {node for edge in edges for node in edge}
    assert reachable(edges) == {node: {path[-1] for path in paths(edges, node)} for node in nodes}


@given(edges_of_graphs)
def test_an_edge_is_dropped_exactly_if_a_path_leads_back_along_it(edges):
    on_cycle = {(t, h) for t, h in edges if t == h or any(p[-1] == t for p in paths(edges, h))}
    assert without_cycles(edges) == edges - on_cycle


@given(edges_of_graphs)
def test_what_is_left_without_cycles_has_none(edges):
    rest = without_cycles(edges)
    assert all(node not in reach for node, reach in reachable(rest).items())


@given(edges_of_dags)
def test_longest_paths_are_the_longest_of_all_simple_paths(edges):
    expected: dict[tuple[int, int], int] = {}
    for node in range(7):
        for path in paths(edges, node):
            ends = (path[0], path[-1])
            expected[ends] = max(expected.get(ends, 0), len(path) - 1)
    assert longest_paths(edges) == expected


def test_longest_paths_refuse_a_cycle():
    with pytest.raises(CycleError):
        longest_paths({(0, 1), (1, 0)})

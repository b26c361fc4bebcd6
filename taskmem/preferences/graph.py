"""The little graph theory that pair selection needs. A graph is a set of edges (from, to) between node numbers."""

from collections.abc import Set
from graphlib import TopologicalSorter

Edge = tuple[int, int]


def _successors(edges: Set[Edge]) -> dict[int, set[int]]:
    following: dict[int, set[int]] = {}
    for tail, head in edges:
        following.setdefault(tail, set()).add(head)
        following.setdefault(head, set())
    return following


def reachable(edges: Set[Edge]) -> dict[int, set[int]]:
    """For every node of an edge, the nodes it reaches by one edge or more; itself only if it lies on a cycle."""
    following = _successors(edges)
    reach: dict[int, set[int]] = {}
    for start, heads in following.items():
        seen: set[int] = set()
        waiting = list(heads)
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(following[node])
        reach[start] = seen
    return reach


def without_cycles(edges: Set[Edge]) -> set[Edge]:
    """The edges between strongly connected components; what is left is acyclic (METHOD section 4, step 3)."""
    reach = reachable(edges)
    return {(tail, head) for tail, head in edges if tail not in reach[head]}


def longest_paths(edges: Set[Edge]) -> dict[Edge, int]:
    """The number of edges of the longest path from one node to another, for every pair joined by a path.

    Raises graphlib.CycleError, a ValueError, if the graph has a cycle.
    """
    following = _successors(edges)
    longest: dict[Edge, int] = {}
    # The sorter puts successors first when they are given as predecessors.
    for node in TopologicalSorter(following).static_order():
        for head in following[node]:
            longest[node, head] = max(longest.get((node, head), 0), 1)
            for target in following:
                if (head, target) in longest:
                    longest[node, target] = max(longest.get((node, target), 0), 1 + longest[head, target])
    return longest

"""Preferences: comparisons of candidates, the graph of one context, the pair it gives (METHOD section 4). Pure."""

from taskmem.preferences.candidates import MinedCandidate, mined_candidates
from taskmem.preferences.compare import ComparisonFailure, ComparisonOutcome, compare_candidates, draw_questions
from taskmem.preferences.mine import MiningOutcome, check_questions, mine
from taskmem.preferences.select import NoPair, Selection, random_pairs, select, select_pair

__all__ = [
    "ComparisonFailure",
    "ComparisonOutcome",
    "MinedCandidate",
    "MiningOutcome",
    "NoPair",
    "Selection",
    "check_questions",
    "compare_candidates",
    "draw_questions",
    "mine",
    "mined_candidates",
    "random_pairs",
    "select",
    "select_pair",
]

"""Comparisons under each environment's recent questions, and one pair per context (METHOD section 4)."""

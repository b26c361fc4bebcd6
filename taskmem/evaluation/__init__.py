"""Streaming evaluation: questions answered from memory alone, and what the answers are worth (METHOD section 5)."""

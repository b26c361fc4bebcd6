"""TaskMem: memory for multimodal agents, learned from the tasks that really arrive (arXiv:2605.31075)."""

__version__ = "0.1.0"

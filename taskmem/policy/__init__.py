"""The memorization policy: what it reads, what it may write, and the back ends that run it."""

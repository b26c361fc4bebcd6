"""The agent at work, and the champion's pointer."""

"""One file per claim. Each is a command that runs both sides and prints a ratio or a difference."""

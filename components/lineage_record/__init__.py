"""What a run was made of and what became of it."""

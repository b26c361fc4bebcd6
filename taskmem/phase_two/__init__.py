"""phase_two."""

"""phase_one."""

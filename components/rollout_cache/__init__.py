"""N candidates per context from the frozen policy, once (METHOD section 4, step 1)."""

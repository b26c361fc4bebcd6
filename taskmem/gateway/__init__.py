"""Gateway: one base model for all environments; who asks gets its own adapter, and never another's."""

"""Shipped profiles, one YAML file each."""

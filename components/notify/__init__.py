"""What became of a night, told to Prometheus."""

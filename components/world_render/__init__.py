"""The embedded world's source of videos; a deployment brings its own instead."""

"""The recent questions of each environment since its last adaptation."""

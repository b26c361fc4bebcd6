"""The embedded default: a rendered world with known truth, its judges and answerer, and a tiny base policy."""

"""The one client of OpenAI-compatible servers: cached, priced, bounded. Judges, policy and answerer use it."""

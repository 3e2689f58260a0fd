"""The OpenAI-compatible server: every model and app of a workspace behind one address."""

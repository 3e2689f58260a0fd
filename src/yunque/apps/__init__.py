"""Applications: an index over documents, answers with citations, and an app as a YAML file."""

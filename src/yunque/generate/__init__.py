"""Generating text: sampling, and the engine that runs a model. `config` is light; the rest imports torch."""

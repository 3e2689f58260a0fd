"""Yunque: one platform for the whole life of a language-model application."""

__version__ = "0.1.0"

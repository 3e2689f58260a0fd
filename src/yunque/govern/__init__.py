"""Answering for it: lineage from an answer back to the files."""

from yunque.govern.lineage import Node, trace

__all__ = ["Node", "trace"]

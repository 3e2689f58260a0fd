"""Readers: from a file to its pieces of text, each with the place where it stood."""

from yunque.data.readers.files import Found, Skipped, find_files
from yunque.data.readers.piece import Limits, Piece, Unreadable
from yunque.data.readers.read import Reading, read_file

__all__ = ["Found", "Limits", "Piece", "Reading", "Skipped", "Unreadable", "find_files", "read_file"]

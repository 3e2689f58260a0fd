"""A decoder's step in C++, compiled on the user's machine when it is first used."""

from yunque.native.build import native_library

__all__ = ["native_library"]

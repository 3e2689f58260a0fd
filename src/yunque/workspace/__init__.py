"""The ground: catalog, blobs, keys, call log and audit log of a workspace."""

from yunque.workspace.artifact import KINDS, Artifact, Kind
from yunque.workspace.calls import Call, read_calls
from yunque.workspace.files import atomic_folder, atomic_write
from yunque.workspace.workspace import Workspace

__all__ = ["KINDS", "Artifact", "Call", "Kind", "Workspace", "atomic_folder", "atomic_write", "read_calls"]

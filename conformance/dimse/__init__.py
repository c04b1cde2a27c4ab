"""The cases of DIMSE, a module for each service."""

from . import association, devices, find, move, store

__all__ = ["association", "devices", "find", "move", "store"]

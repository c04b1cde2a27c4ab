"""The cases of DICOMweb, a module for each section of the requirements."""

from . import clients, datasets, errors, negotiation, qido, rendered, resources, stow, syntaxes, wado

__all__ = [
    "clients",
    "datasets",
    "errors",
    "negotiation",
    "qido",
    "rendered",
    "resources",
    "stow",
    "syntaxes",
    "wado",
]

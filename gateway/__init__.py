"""Imageset Gateway: DICOMweb and DIMSE in front of versioned image sets."""

__version__ = "0.1.0"

"""The version of cnnfast, stated here only."""

__version__ = "0.1.0"

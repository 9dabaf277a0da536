"""ppd: a prompt-processing daemon for telescope images."""

__version__ = "0.1.0"

"""Sweeps: which jobs one command line makes."""

"""Sweeps: many runs from one command, here or on Slurm; what became of them, and how to go on."""

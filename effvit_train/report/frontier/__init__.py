"""The frontier page: what is to be had for what, over many runs. Needs no torch."""

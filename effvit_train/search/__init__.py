"""Multi-objective search: trials of one study on any number of processes and machines (docs/search.md)."""

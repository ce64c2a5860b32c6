"""Reports: the HTML card, the table in the terminal, the baseline that a run is compared with."""

"""One printed page for those who decide, in plain English and Japanese. Needs no torch."""

"""What strategies keep of earlier tasks to show it again: a memory of a fixed size. Needs no torch."""

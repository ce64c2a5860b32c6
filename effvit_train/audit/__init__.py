"""Audit: one axis of Efficiency 360 per module. Importing this package imports no torch."""

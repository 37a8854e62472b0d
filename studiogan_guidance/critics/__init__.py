"""Discriminators as calibrated log density ratios."""

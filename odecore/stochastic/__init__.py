"""Stochastic equations and their noise."""

"""Drivers: what takes steps, adaptive or on a grid, and what it keeps of them."""

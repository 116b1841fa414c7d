"""Explicit methods: Runge–Kutta, Adams, Taylor, symplectic."""

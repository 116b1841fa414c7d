"""Exponential methods: what knows the exponential of its linear part."""

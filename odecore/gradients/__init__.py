"""Gradients of solves in bounded memory."""

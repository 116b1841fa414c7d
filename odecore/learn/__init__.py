"""Learned dynamics: fields, constraints, operators, observers, preconditioners and the one loop that trains them."""

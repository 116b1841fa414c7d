"""torchdiffeq's interface."""

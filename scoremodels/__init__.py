"""What a pretrained diffusion or flow model is: its noise schedule, its prediction, its network."""

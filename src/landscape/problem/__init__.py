"""Network, data and loss: L(θ) and ∇L(θ)."""

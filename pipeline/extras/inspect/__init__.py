"""Pictures of a trained network: weights, gradients, activations and embeddings."""

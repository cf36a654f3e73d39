"""Neural networks: models, optimizers, the training loop and inference. Takes arrays and opens no data files."""

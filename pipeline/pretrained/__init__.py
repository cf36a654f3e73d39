"""The pretrained weights: quick.safetensors, standard.safetensors, and what they may be tested on."""

"""A conditional GAN and its generated digits."""

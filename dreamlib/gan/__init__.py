"""StyleGAN2 with adaptive augmentation, from its papers: networks, augmentation, losses."""

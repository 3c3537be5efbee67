"""Diffusion and DREAM.  Needs torch and small files of rank 0; settings come as plain arguments.

What x0, t, eps, a, s, x_t, eps_hat, x0_hat, D and lam are: docs/ARCHITECTURE.md, The letters.
Images are float [B,C,H,W], timesteps int64 [B].
"""

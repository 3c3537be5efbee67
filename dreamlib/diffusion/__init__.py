"""Diffusion and DREAM.  Needs torch and small files of rank 0; settings come as plain arguments.

The letters, everywhere in this package:

    x0          clean images, float [B,C,H,W] in [-1, 1]
    t           timestep, int64 [B], 0 (almost clean) .. T-1 (almost noise)
    eps         standard normal noise, shaped like x0
    alpha_bar   cumulative product of 1 - beta; a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar)
    x_t         a x0 + s eps
    eps_hat     what the network predicts; x0_hat = (x_t - s eps_hat) / a
    miss        D = eps - eps_hat, the network's own error, without gradient
    lam         DREAM's lambda: how far input (and target) are moved along D
"""

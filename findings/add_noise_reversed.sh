#!/bin/sh
# diffusers 0.42.1 with torch 2.13.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: add_noise(x, noise, t) noises to level t, whichever scheduler it is asked of, or raises.
# Seen: a DPM-Solver++, UniPC or DEIS scheduler just made has its noise levels the wrong way round: t = 0
# gets all the noise (1.000 instead of 0.010), t = 999 next to none, so a training by its add_noise
# teaches a network to find much noise where there is little.  After set_timesteps(1000) it is right but for t = 0;
# after a preview by 20 steps every t that is not one of those 20 gets the noise of the LAST step: 980 of 1000
# timesteps are wrong.  No word is said.  Euler is right, then raises IndexError; DDPM is always right.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'diffusers==0.42.1' 'torch==2.13.0' 'numpy==2.4.6' 'scipy==1.17.1' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import diffusers
import torch

t, ones = torch.arange(1000), torch.ones(1000, 1, 1, 1)
SOLVERS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
wrong = {}
for name in "DDPMScheduler", "EulerDiscreteScheduler", *SOLVERS:
    for steps in None, 1000, 20:
        scheduler = getattr(diffusers, name)()
        if steps:
            scheduler.set_timesteps(steps)
        bar = scheduler.alphas_cumprod
        right = (1 - bar).sqrt()
        if name.startswith("Euler"):  # it leaves the image as large as it is
            right = right / bar.sqrt()
        try:
            level = scheduler.add_noise(0 * ones, ones, t).flatten()
        except IndexError:
            wrong[name, steps] = "IndexError"
        else:
            wrong[name, steps] = int(((level / right - 1).abs() > 0.01).sum())
            told = ", ".join(f"{float(level[i]):.3f} ({float(right[i]):.3f})" for i in (0, 10, 800, 999))
        print(f"{name}, {f'set_timesteps({steps})' if steps else 'just made'}: {wrong[name, steps]} of 1000 wrong"
              + ("" if wrong[name, steps] == "IndexError" else f"; t = 0, 10, 800, 999 get (should get) {told}"))
assert all(wrong["DDPMScheduler", steps] == 0 for steps in (None, 1000, 20)), "the behaviour has changed"
euler = [wrong["EulerDiscreteScheduler", steps] for steps in (None, 1000, 20)]
assert euler == [0, 0, "IndexError"], "the behaviour has changed"
for name in SOLVERS:
    assert [wrong[name, steps] for steps in (None, 1000, 20)] == [976, 1, 980], "the behaviour has changed"
print("as stated")
PY

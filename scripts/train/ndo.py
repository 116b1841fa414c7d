"""Train the differential operator that comes with the library: `python scripts/train/ndo.py`.

Fresh windows of the function library at each step, Adam with half a cosine; checkpoints in `--folder`, from which an
interrupted run goes on. Writes weights, configuration and the card.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch

from odecore.learn.callbacks import cosine_decay
from odecore.learn.fit import adam, fit
from odecore.learn.function_library import Library, Windows
from odecore.learn.operators import PRETRAINED, DerivativeOperator, slope_loss

HELD_OUT = 10**9
"""The seed of test windows; training uses the numbers of its steps, times ten, plus the seed of the run."""

CARD = """---
license: apache-2.0
---

# ndo

A neural differential operator: derivatives of sampled trajectories from windows of {window} times.

| | |
|---|---|
| Input | {window} values and times of one coordinate; scale, shift, parabolas and the unit of time are taken out |
| Network | SiLU layers, {widths}, on the remainder of the parabola and the intervals; odd in the remainder |
| Parameters | {parameters:,} ({kilobytes} kB of float32) |
| Data | none: random polynomials, waves, exponentials, their products and sharp sigmoids with noise \
(`odecore/learn/function_library.py`), fresh at each step |
| Loss | Huber's function of the error in units of the remainder |
| Training | {steps:,} steps of {batch:,} windows, Adam, learning rate {lr}, half a cosine, seed {seed}; \
`scripts/train/ndo.py`; {minutes:.0f} minutes of one thread of an {machine} processor, PyTorch {torch} |
| Loss on unseen windows | {loss:.4f}; {parabola:.4f} with the parabola alone |
| Licence of the weights | Apache-2.0 |

```python
from odecore.learn.operators import DerivativeOperator

derivatives = DerivativeOperator.load()(values, times)  # (runs, times, n) and (times,)
```

It does badly where its library ends: more than three periods, or more than one step, in a window.
"""


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--window", type=int, default=25)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, default=PRETRAINED / "ndo")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    library = Library(arguments.window)
    operator = DerivativeOperator(arguments.window, (arguments.width,) * 3, seed=arguments.seed)

    def batch(step: int) -> Windows:
        return library.sample(arguments.batch, 10 * step + arguments.seed)

    fit(operator, slope_loss, batch, steps=arguments.steps, optimizer=adam(arguments.lr), clip=1.0,
        callbacks=[cosine_decay(arguments.steps, warmup=min(200, arguments.steps - 1))],
        folder=arguments.folder, save_every=500)
    held_out = library.sample(20_000, HELD_OUT)
    with torch.no_grad():
        loss = slope_loss(operator, held_out).item()
        for parameter in (silent := DerivativeOperator(arguments.window, (1,))).parameters():
            parameter.zero_()
        parabola = slope_loss(silent, held_out).item()
    operator.save(arguments.out)
    count = sum(parameter.numel() for parameter in operator.parameters())
    (arguments.out / "README.md").write_text(CARD.format(
        window=arguments.window, widths=" × ".join(map(str, operator.hidden)), parameters=count,
        kilobytes=4 * count // 1000, steps=arguments.steps, batch=arguments.batch, lr=arguments.lr,
        seed=arguments.seed, minutes=time.process_time() / 60, machine=platform.machine(),
        torch=torch.__version__, loss=loss, parabola=parabola))
    print(f"loss {loss:.4f}, parabola {parabola:.4f}, wrote {arguments.out}")


if __name__ == "__main__":
    main()

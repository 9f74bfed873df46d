"""How much memory does a training step hold for each repetition (buffers of the compiled program)?"""

import jax
from harness import arguments, finish, megabytes, our_loop, public_step

from bayesprompt.devices import make_mesh
from bayesprompt.models.predictor import LSTM, Transformer
from bayesprompt.tuning.fitting import FitConfig

CASES = [("FullWT", 100, 1), ("SoftPT", 50, 10), ("LoRAWT", 50, 10), ("FullWT", 50, 10)]


if __name__ == "__main__":
    options, rows = arguments(__doc__), []
    for architecture in (Transformer(), LSTM()):
        for method, length, repetitions in CASES:
            if method == "LoRAWT" and isinstance(architecture, LSTM):
                continue
            config = FitConfig(steps=2, batch=256, length=length)
            run, given = our_loop(architecture, method, config, repetitions)
            # A CPU core holds one repetition at a time (or a share of its batch), an accelerator all of its own.
            grid = make_mesh(repetitions, config.batch).shape
            held_at_once = 1 if jax.default_backend() == "cpu" else repetitions / grid["repetition"]
            own = held_at_once / grid["batch"]
            row = {
                "case": f"{type(architecture).__name__} {method}", "length": length, "repetitions": repetitions,
                "megabytes_per_repetition": megabytes(run.lower(*given).compile()) / own,
            }  # fmt: skip
            line = f"{row['case']:24s}  length {length:4d}  {row['megabytes_per_repetition']:8.1f} MiB a repetition"
            if options.thunnini is not None:
                step, settings, held = public_step(options.thunnini, architecture, method, config)
                row["public_megabytes"] = megabytes(step.lower(**held, **settings).compile())
                line += f"  public code {row['public_megabytes']:8.1f} MiB"
            print(line, flush=True)
            rows.append(row)
    finish(options, __file__, rows)

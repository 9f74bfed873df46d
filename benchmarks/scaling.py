"""How do time and memory of a FullWT step grow with length, width and repetitions (batch 64)?"""

from harness import arguments, finish, megabytes, our_loop, our_steps, paired

from bayesprompt.models.predictor import LSTM, Transformer
from bayesprompt.tuning.fitting import FitConfig, step_flops

BATCH, LENGTH, WIDTH = 64, 100, 128


def sizes(name: str, width: int) -> Transformer | LSTM:
    """Return an architecture of this width in the paper's proportions."""
    return LSTM(2, width, width) if name == "LSTM" else Transformer(2, width, 4, 1, 4 * width)


if __name__ == "__main__":
    options = arguments(__doc__, lengths=[100, 200, 400, 800, 1600], widths=[128, 256, 512, 1024], many=[1, 4, 16, 64])
    rows = []
    for name in ("Transformer", "LSTM"):
        cases = [("length", n, n, WIDTH, 1) for n in options.lengths]
        cases += [("width", d, LENGTH, d, 1) for d in options.widths]
        cases += [("repetitions", r, LENGTH // 2, WIDTH, r) for r in options.many]
        for axis, value, length, width, repetitions in cases:
            architecture, config = sizes(name, width), FitConfig(steps=1, batch=BATCH, length=length)
            run, given = our_loop(architecture, "FullWT", config, repetitions)
            compiled = run.lower(*given).compile()
            held = megabytes(compiled)
            (seconds,) = paired(min(options.rounds, 2), our_steps(compiled, given))
            rate = repetitions * step_flops(architecture, BATCH, length) / seconds
            rows.append(
                {"case": name, "axis": axis, "value": value, "seconds": seconds, "megabytes_per_device": held,
                 "flops_per_second": rate}
            )  # fmt: skip
            print(
                f"{name:12s} {axis:12s} {value:5d} {seconds:9.3f} s {held:9.1f} MiB {rate / 1e9:7.1f} GFLOP/s",
                flush=True,
            )
    finish(options, __file__, rows)

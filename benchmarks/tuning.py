"""How long does a tuning step of ten repetitions take (single coin, batch 256, length 50)?"""

from harness import arguments, compare_steps, finish

from bayesprompt.models.predictor import LSTM, Transformer
from bayesprompt.tuning.fitting import FitConfig

METHODS = ["SoftPT", "LoRAWT", "FullWT"]

if __name__ == "__main__":
    options = arguments(__doc__, methods=METHODS, repetitions=[10], steps=[5])
    rows = []
    for architecture in (Transformer(), LSTM()):
        for method in options.methods:
            if method == "LoRAWT" and isinstance(architecture, LSTM):
                continue  # it runs beside attention layers
            config = FitConfig(steps=options.steps[0], batch=256, length=50, learning_rate=5e-3)
            rows.append(compare_steps(options, architecture, method, config, options.repetitions[0]))
    finish(options, __file__, rows)

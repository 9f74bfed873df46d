"""How long does a pretraining step take (random coins, batch 256, length 100)?"""

from harness import arguments, compare_steps, finish

from bayesprompt.models.predictor import LSTM, Transformer
from bayesprompt.tuning.fitting import FitConfig

if __name__ == "__main__":
    options = arguments(__doc__)
    config = FitConfig(steps=5, batch=256, length=100, learning_rate=1e-3)
    rows = [compare_steps(options, architecture, "FullWT", config, 1) for architecture in (Transformer(), LSTM())]
    finish(options, __file__, rows)

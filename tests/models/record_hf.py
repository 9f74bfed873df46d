"""Records what transformers computes with small random LLaMA networks, for test_hf.py to compare with: hf.npz.

Run by a Python that has torch and transformers, which the project does not need otherwise; the file that is there came
from torch 2.13.0 (CPU), transformers 5.23.0 and safetensors 0.8.0. Kept are, for each network, config.json and the
tensors as `save_pretrained` writes them (bfloat16 as 16-bit integers), and the logits of a text in float32.
"""

import tempfile
from pathlib import Path

import numpy as np

SMALL = {
    "vocab_size": 48, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
NETWORKS = {
    "tied": ({"tie_word_embeddings": True}, "float32"),
    "grouped": (
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        "float16",
    ),
    "own head size": ({"head_dim": 10, "num_key_value_heads": 1, "tie_word_embeddings": True}, "bfloat16"),
    "llama3": ({"head_dim": 16, "num_key_value_heads": 1, "rope_parameters": LLAMA3}, "bfloat16"),
    "linear": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}}, "float16"),
}


def main() -> None:
    """Draw the networks, run them, and write the file beside this script."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(SMALL["vocab_size"], (1, 64), generator=generator)
    found = {"tokens": tokens.numpy().astype(np.int32)}
    for name, (changes, dtype) in NETWORKS.items():
        network = LlamaForCausalLM(LlamaConfig(**SMALL, **changes)).eval()
        with torch.no_grad():
            for key, weights in network.named_parameters():  # large enough that attention is uneven
                mean, scale = (1, 0.2) if "norm" in key else (0, 0.3)
                weights.copy_(mean + scale * torch.randn(weights.shape, generator=generator))
            network = network.to(getattr(torch, dtype))
            with tempfile.TemporaryDirectory() as folder:
                network.save_pretrained(folder)
                found[f"{name}/config.json"] = np.frombuffer(Path(folder, "config.json").read_bytes(), np.uint8)
                for key, weights in load_file(Path(folder, "model.safetensors")).items():
                    weights = weights.view(torch.int16) if dtype == "bfloat16" else weights
                    found[f"{name}/{key}"] = weights.numpy()
                network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
            found[f"{name}/logits"] = network(tokens).logits.numpy()
    np.savez_compressed(Path(__file__).with_name("hf.npz"), **found)


if __name__ == "__main__":
    main()

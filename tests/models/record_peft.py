"""Records what PEFT computes with adapters of its own and with ours, for test_peft.py to compare with: peft.npz.

Two steps: `python record_peft.py export FOLDER` by the project's Python writes our adapters, and `python record_peft.py
FOLDER` by a Python that has torch, transformers and peft (which the project does not need otherwise) reads them, makes
adapters with random rows itself, and runs all of them. The file that is there came from torch 2.14.1, transformers
5.24.0 and peft 0.21.2 on a CPU. Kept are each adapter's adapter_config.json, its rows, and the logits in float32.
"""

import sys
from pathlib import Path

import numpy as np

NETWORKS, LENGTH, HERE = ("tied", "grouped"), 4, Path(__file__).parent


def ours(sizes):
    """Return prefixes of all kinds that can be exported, by name."""
    from bayesprompt.models.prefixes import Prefix, hard_prefix

    draw = np.random.default_rng(0).normal
    return {
        "hard": hard_prefix(np.array([3, 1, 4, 1]), sizes.num_tokens),
        "embeddings": Prefix(embeddings=draw(size=(LENGTH, sizes.embed_dim)).astype(np.float32)),
        "layers": Prefix(layers=draw(size=(sizes.num_layers, LENGTH, sizes.embed_dim)).astype(np.float32)),
    }


def network_folder(folder: Path, name: str) -> Path:
    """Write a network of hf.npz."""
    from test_hf import write

    folder.mkdir(parents=True)
    return write(folder, name)


def export(folder: Path) -> None:
    """Write the networks and our adapters for them."""
    from bayesprompt.models.hf import llama_from_safetensors
    from bayesprompt.models.peft import export_peft

    for name in NETWORKS:
        model = llama_from_safetensors(network_folder(folder / name / "network", name))
        for kind, prefix in ours(model.sizes).items():
            export_peft(folder / name / kind, model, prefix)


def main(folder: Path) -> None:
    """Run our adapters and random ones of PEFT's, and write the file beside this script."""
    import peft
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    print(f"torch {torch.__version__}, transformers {__import__('transformers').__version__}, peft {peft.__version__}")
    torch.manual_seed(0)
    with np.load(HERE / "hf.npz") as recorded:
        tokens = torch.tensor(recorded["tokens"]).long()
    found = {}
    for name in NETWORKS:
        kinds = {"prompt tuning": peft.PromptTuningConfig, "prefix tuning": peft.PrefixTuningConfig}
        for kind, config in kinds.items():
            network = LlamaForCausalLM.from_pretrained(folder / name / "network", dtype=torch.float32).eval()
            tuned = peft.get_peft_model(network, config(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH))
            with torch.no_grad():
                for weights in tuned.prompt_encoder.parameters():
                    weights.copy_(torch.randn(weights.shape))
            tuned.save_pretrained(folder / name / kind)
        for kind in (*kinds, "hard", "embeddings", "layers"):
            network = LlamaForCausalLM.from_pretrained(folder / name / "network", dtype=torch.float32).eval()
            tuned = peft.PeftModel.from_pretrained(network, folder / name / kind).eval()
            with torch.no_grad():
                logits = tuned(tokens).logits.numpy()[:, -tokens.shape[1] :]
            config = (folder / name / kind / "adapter_config.json").read_bytes()
            found[f"{name}/{kind}/config"] = np.frombuffer(config, np.uint8)
            (found[f"{name}/{kind}/rows"],) = (
                rows.numpy() for rows in load_file(folder / name / kind / "adapter_model.safetensors").values()
            )
            found[f"{name}/{kind}/logits"] = logits
    np.savez_compressed(HERE / "peft.npz", **found)


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))

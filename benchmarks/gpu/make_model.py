"""A checkpoint of Llama-2-7B's shape with random weights: speed does not depend on what they are.

python benchmarks/gpu/make_model.py FOLDER [--num-blocks 32] [--hidden 4096] [--inner 11008] [--heads 32]
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

VOCAB = 32_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-blocks", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11_008)
    parser.add_argument("--heads", type=int, default=32)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner = options.hidden, options.inner
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=options.num_blocks,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=4096,
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    index: dict[str, str] = {}

    def write(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else (torch.randn(shape) * 0.02).to(torch.bfloat16)
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    for block in range(options.num_blocks):
        prefix = f"model.layers.{block}."
        square, up, down = (hidden, hidden), (inner, hidden), (hidden, inner)
        write(
            f"block-{block}.safetensors",
            {f"{prefix}self_attn.{part}_proj.weight": square for part in "qkvo"}
            | {f"{prefix}mlp.{part}_proj.weight": up for part in ("gate", "up")}
            | {f"{prefix}mlp.down_proj.weight": down}
            | {f"{prefix}{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")},
        )
    ends = {"model.embed_tokens.weight": (VOCAB, hidden), "lm_head.weight": (VOCAB, hidden)}
    write("ends.safetensors", {**ends, "model.norm.weight": (hidden,)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


if __name__ == "__main__":
    main()

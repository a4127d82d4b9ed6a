"""Write the files of a tiny random Llama and its tokenizer, in a second.

The model is for demos and tests on machines without access to a model hub. `dyno tiny-model DIR`
runs this file with the engine's interpreter, because the file imports `tokenizers`, `safetensors`
and numpy, which are installed with SGLang. The file imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
HIDDEN, INTERMEDIATE, LAYERS = 128, 352, 2
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 32
CONTEXT = 2048
BEGIN, END = "<|begin|>", "<|end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|begin|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|begin|>assistant\\n' }}{% endif %}"
)


def create(directory: Path) -> None:
    """Write the model's files into `directory`, which is created if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(directory / "tokenizer_config.json", _tokenizer_config())
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    ids = {"bos_token_id": tokenizer.token_to_id(BEGIN), "eos_token_id": tokenizer.token_to_id(END)}
    _write(directory / "config.json", _config() | ids)
    _write(directory / "generation_config.json", ids)
    weights = directory / "model.safetensors"
    save_file(dict(_weights()), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors creates a file that only its owner can read


def _train_tokenizer() -> Tokenizer:
    """Train byte-level BPE on the standard library's sources, which every machine has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(json.__file__).parent.parent.glob("[a-m]*.py"))[:60]
    tokenizer.train([str(path) for path in sources], trainer)
    return tokenizer


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _weights() -> Iterator[tuple[str, np.ndarray]]:
    """Yield Llama's parameters, float32: random matrices of shape [out, in], norms of ones."""
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, 0.02, (rows, columns)).astype(np.float32)

    norm = np.ones(HIDDEN, np.float32)
    yield "model.embed_tokens.weight", matrix(VOCABULARY, HIDDEN)
    yield "model.norm.weight", norm.copy()
    yield "lm_head.weight", matrix(VOCABULARY, HIDDEN)
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", norm.copy()
        yield f"{layer}.post_attention_layernorm.weight", norm.copy()
        yield f"{layer}.self_attn.q_proj.weight", matrix(HEADS * HEAD_SIZE, HIDDEN)
        yield f"{layer}.self_attn.k_proj.weight", matrix(KV_HEADS * HEAD_SIZE, HIDDEN)
        yield f"{layer}.self_attn.v_proj.weight", matrix(KV_HEADS * HEAD_SIZE, HIDDEN)
        yield f"{layer}.self_attn.o_proj.weight", matrix(HIDDEN, HEADS * HEAD_SIZE)
        yield f"{layer}.mlp.gate_proj.weight", matrix(INTERMEDIATE, HIDDEN)
        yield f"{layer}.mlp.up_proj.weight", matrix(INTERMEDIATE, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", matrix(HIDDEN, INTERMEDIATE)


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    create(Path(sys.argv[1]))

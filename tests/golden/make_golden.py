#!/usr/bin/env python3
"""Makes the tiny random models of this directory and their reference logits with Transformers.

Every parameter is random, norm gains and biases too, so that an operation that is left out or
done in the wrong place shows. The logits come from what was written to disk, config.json included.

    python3 make_golden.py [NAME...]  rewrites these directories, or all (needs Transformers)
"""
import json
import pathlib
import shutil
import sys

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

HERE = pathlib.Path(__file__).resolve().parent
PROMPT_LENGTHS = [5, 23]
N_GREEDY = 16
# A greedy step must not hang on a rounding error: f32 arithmetic is far more exact than this.
MIN_MARGIN = 0.02
# A continuation that repeats itself would not show a wrong position or a stale cache.
MIN_DISTINCT_IDS = 8
N_SEED_TRIES = 100


def llama(**settings):
    defaults = dict(
        vocab_size=96, hidden_size=32, intermediate_size=72, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        rms_norm_eps=1e-5, tie_word_embeddings=False,
    )
    return LlamaConfig(**{**defaults, **settings})


# name: (config, stored dtype, shard size, key form of config.json, keys added to config.json)
MODELS = {
    "llama3": (
        llama(
            vocab_size=112, hidden_size=64, intermediate_size=80,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        torch.bfloat16, "1GB", "older", {},
    ),
    "llama-linear": (
        llama(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
        torch.float32, "1GB", "oldest", {},
    ),
    "llama-bias": (
        llama(
            attention_bias=True, mlp_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        torch.float32, "1GB", "newer", {},
    ),
    "llama-yarn": (
        llama(
            head_dim=16, num_attention_heads=2, num_key_value_heads=1,
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        torch.float32, "1GB", "newer", {},
    ),
    "mistral": (
        MistralConfig(
            vocab_size=97, hidden_size=32, intermediate_size=72, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=8,
            max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        torch.float32, "40KB", "older", {},
    ),
    "qwen2": (
        Qwen2Config(
            vocab_size=101, hidden_size=48, intermediate_size=88, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
            rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        # Published Qwen2 files name a window and switch it off: it must have no effect.
        torch.float16, "1GB", "newer", {"use_sliding_window": False, "sliding_window": 8},
    ),
    "qwen2-window": (
        Qwen2Config(
            vocab_size=96, hidden_size=32, intermediate_size=72, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            rms_norm_eps=1e-6, tie_word_embeddings=False, use_sliding_window=True,
            sliding_window=8, max_window_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        torch.float32, "1GB", "older", {},
    ),
    "qwen3": (
        Qwen3Config(
            vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        torch.float32, "1GB", "newer", {},
    ),
}


def randomise(model, seed):
    """Draws every parameter: gains around 1, biases, and matrices that keep activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.data = 1.0 + 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif "embed_tokens" in name:
            # Small, so that a tied model is not drawn to repeat its last token.
            parameter.data = 0.2 * noise
        else:
            parameter.data = 1.3 * noise / parameter.shape[1] ** 0.5
    model.tie_weights()


def edit_config(path, key_form, added_keys):
    """Writes the keys as files before Transformers 5 have them, where the key form says so.

    "older" has rope_theta, rope_scaling.rope_type and torch_dtype; "oldest" has rope_scaling.type;
    "newer" is left as it is: rope_parameters and dtype.
    """
    config = json.loads(path.read_text())
    config.update(added_keys)
    if key_form != "newer":
        config["torch_dtype"] = config.pop("dtype")
        scaling = config.pop("rope_parameters")
        config["rope_theta"] = scaling.pop("rope_theta")
        rope_type = scaling.pop("rope_type")
        type_key = "type" if key_form == "oldest" else "rope_type"
        config["rope_scaling"] = (
            None if rope_type == "default" else {type_key: rope_type, **scaling}
        )
        config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model(name, seed):
    config, dtype, shard_size, key_form, added_keys = MODELS[name]
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    (directory / "generation_config.json").unlink(missing_ok=True)
    edit_config(directory / "config.json", key_form, added_keys)
    return directory


def greedy(model, prompt_ids):
    """Returns N_GREEDY ids and the smallest lead of a chosen logit over the next; no KV cache."""
    ids = list(prompt_ids)
    min_margin = float("inf")
    for _ in range(N_GREEDY):
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        min_margin = min(min_margin, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids[len(prompt_ids):], min_margin


@torch.no_grad()
def reference_of(directory, seed):
    """Prompts, logits and greedy ids of the stored model, in float64 with eager attention."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", attn_implementation="eager"
    )
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for length in PROMPT_LENGTHS:
        ids = torch.randint(model.config.vocab_size, [length], generator=generator).tolist()
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        greedy_ids, min_margin = greedy(model, ids)
        prompts.append({
            "prompt_ids": ids, "greedy_ids": greedy_ids, "min_margin": min_margin,
            "logits": logits.tolist(),
        })
    return prompts


def write_reference(path, name, seed, prompts):
    """JSON with one position's logits per line, 8 significant digits."""
    rows_of = [
        ",\n".join("[" + ",".join(f"{x:.8g}" for x in row) + "]" for row in prompt["logits"])
        for prompt in prompts
    ]
    entries = [
        f'{{"prompt_ids": {prompt["prompt_ids"]},\n"greedy_ids": {prompt["greedy_ids"]},\n'
        f'"min_margin": {prompt["min_margin"]:.6g},\n"logits": [\n{rows}]}}'
        for prompt, rows in zip(prompts, rows_of)
    ]
    text = (
        f'{{"model": "{name}", "seed": {seed},\n'
        f'"made_with": "transformers {transformers.__version__}, torch {torch.__version__}",\n'
        f'"math": "stored weights widened to float64, eager attention, no KV cache",\n'
        f'"prompts": [\n' + ",\n".join(entries) + "]}\n"
    )
    json.loads(text)
    path.write_text(text)


def make(name):
    """Takes the first seed whose greedy choices are all clear and varied."""
    for seed in range(N_SEED_TRIES):
        directory = save_model(name, seed)
        prompts = reference_of(directory, seed)
        margin = min(prompt["min_margin"] for prompt in prompts)
        n_distinct = min(len(set(prompt["greedy_ids"])) for prompt in prompts)
        if margin >= MIN_MARGIN and n_distinct >= MIN_DISTINCT_IDS:
            write_reference(directory / "logits.json", name, seed, prompts)
            print(f"{name}: seed {seed}, smallest margin {margin:.3f}")
            return
    raise SystemExit(f"{name}: no seed of {N_SEED_TRIES} has clear and varied greedy choices")


if __name__ == "__main__":
    for model_name in sys.argv[1:] or MODELS:
        make(model_name)

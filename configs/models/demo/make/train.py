#!/usr/bin/env python3
"""Trains the demo model from nothing and writes it as a Hugging Face directory.

    python3 train.py [--steps N] [--seed N] [--out DIR]

needs PyTorch, Transformers, tokenizers and a GPU; evaluate.py then measures what was written.
"""
import argparse
import json
import math
import multiprocessing
import pathlib
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import generate_text as text

MAX_VOCAB = 768
N_TOKENIZER_DOCUMENTS = 20000

# Documents of one problem fill a short row, documents of two to four problems a long one.
# Rows of a batch have one length, and every batch has the same number of tokens.
ROW_TOKENS = {"short": 72, "long": 256}
N_ROWS = {"short": 2400000, "long": 200000}
BATCH_TOKENS = 147456
LONG_BATCH_EVERY = 5
SHARD_ROWS = 20000

# Operands in a question are random: learning to guess them is of little use.
LOSS_WEIGHTS = {text.PROMPT: 0.1, text.ANSWER: 1.0, text.GAP: 0.0}

PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 200

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# ---- tokenizer ---------------------------------------------------------------------------------


def train_tokenizer(seed):
    """Byte-level BPE that takes every digit as a token of its own, so that sums can be learnt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB,
        special_tokens=text.SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    rng = random.Random(f"{seed} tokenizer")
    corpus = []
    for _ in range(N_TOKENIZER_DOCUMENTS):
        document = "".join(piece for piece, _ in text.random_document(rng, 1))
        for token in text.SPECIAL_TOKENS:
            document = document.replace(token, "")
        corpus.append(document)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{text.BOS} $A", special_tokens=[(text.BOS, tokenizer.token_to_id(text.BOS))]
    )
    return tokenizer


def tokenizer_settings():
    return {
        "added_tokens_decoder": {
            str(i): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                     "single_word": False, "special": True}
            for i, token in enumerate(text.SPECIAL_TOKENS)
        },
        "bos_token": text.BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": text.EOS,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


# ---- training rows -----------------------------------------------------------------------------


def encode_document(tokenizer, pieces):
    """Ids and loss weights of a document, piece by piece: pieces end where tokens end."""
    ids, weights = [], []
    for piece, purpose in pieces:
        piece_ids = tokenizer.encode(piece, add_special_tokens=False).ids
        ids += piece_ids
        weights += [LOSS_WEIGHTS[purpose]] * len(piece_ids)
    return ids, weights


def check_pieces_are_tokens(tokenizer, seed):
    rng = random.Random(f"{seed} check")
    for _ in range(1000):
        pieces = text.random_document(rng, rng.randrange(1, 5))
        whole = tokenizer.encode("".join(p for p, _ in pieces), add_special_tokens=False).ids
        assert encode_document(tokenizer, pieces)[0] == whole, pieces


def make_shard(job):
    """SHARD_ROWS rows: ids [rows, row_tokens] int16 and weights [rows, row_tokens] float16."""
    tokenizer_json, seed, size, shard = job
    tokenizer = Tokenizer.from_str(tokenizer_json)
    rng = random.Random(f"{seed} {size} {shard}")
    ids = np.full([SHARD_ROWS, ROW_TOKENS[size]], CONFIG["eos_token_id"], np.int16)
    weights = np.zeros(ids.shape, np.float16)
    for row in range(SHARD_ROWS):
        n_problems = 1 if size == "short" else rng.randrange(2, 5)
        row_ids, row_weights = encode_document(tokenizer, text.random_document(rng, n_problems))
        n = min(len(row_ids), ROW_TOKENS[size])
        ids[row, :n] = row_ids[:n]
        weights[row, :n] = row_weights[:n]
    return ids, weights


def make_rows(tokenizer, seed, size, n_rows):
    jobs = [(tokenizer.to_str(), seed, size, i) for i in range(math.ceil(n_rows / SHARD_ROWS))]
    with multiprocessing.Pool() as pool:
        shards = pool.map(make_shard, jobs, chunksize=1)
    return tuple(torch.from_numpy(np.concatenate(part)) for part in zip(*shards))


# ---- training ----------------------------------------------------------------------------------


def learning_rate(step, n_steps):
    """Linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, n_steps - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), fused=True)


def weighted_loss(model, ids, weights, device):
    """Weighted mean of the next-token loss; ids and weights: [n_rows, n_tokens]."""
    with torch.autocast(device, torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def train(rows, vocab_size, n_steps, seed, device):
    torch.manual_seed(seed)
    config = {**CONFIG, "vocab_size": vocab_size, "torch_dtype": "float32"}
    model = LlamaForCausalLM(LlamaConfig(**config)).to(device)
    if device == "cuda":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    optimizer = make_optimizer(model)
    rows = {size: tuple(part.to(device) for part in parts) for size, parts in rows.items()}
    started = time.time()
    for step in range(n_steps):
        size = "long" if step % LONG_BATCH_EVERY == 0 else "short"
        ids, weights = rows[size]
        chosen = torch.randint(len(ids), [BATCH_TOKENS // ROW_TOKENS[size]], device=device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps)
        loss = weighted_loss(model, ids[chosen].long(), weights[chosen].float(), device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 250 in (1, 2) or step == n_steps - 1:
            print(f"step {step} ({size}): loss {loss.item():.4f}, {time.time() - started:.0f} s",
                  flush=True)
    return model


# ---- the directory -----------------------------------------------------------------------------


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def save(directory, tokenizer, model):
    """Writes everything but the README; the tied output matrix is stored once, as embeddings."""
    tensors = {name: tensor.to("cpu", torch.bfloat16).contiguous()
               for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", {**CONFIG, "vocab_size": tokenizer.get_vocab_size()})
    ends = [tokenizer.token_to_id(text.EOS), tokenizer.token_to_id(text.IM_END)]
    write_json(directory / "generation_config.json",
               {"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": ends})
    write_json(directory / "tokenizer_config.json", tokenizer_settings())
    tokenizer.save(str(directory / "tokenizer.json"))
    return sum(tensor.numel() for tensor in tensors.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent)
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.seed)
    check_pieces_are_tokens(tokenizer, args.seed)
    started = time.time()
    rows = {size: make_rows(tokenizer, args.seed, size, n) for size, n in N_ROWS.items()}
    print(f"{tokenizer.get_vocab_size()} tokens; text in {time.time() - started:.0f} s", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = train(rows, tokenizer.get_vocab_size(), args.steps, args.seed, device)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{save(args.out, tokenizer, model)} parameters")


if __name__ == "__main__":
    main()

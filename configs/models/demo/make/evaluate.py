#!/usr/bin/env python3
"""Measures the demo model as stored, on pairs of numbers that no training document contains.

    python3 evaluate.py [--model DIR] [--reference FILE]

prints the accuracy of greedy answers as a Markdown table and writes the greedy reference outputs
of 16 prompts. The stored bf16 weights are widened: float32 for the table, float64 for the outputs.
"""
import argparse
import json
import pathlib
import random

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import generate_text as text

DIRECTORY = pathlib.Path(__file__).resolve().parent.parent
REFERENCE = DIRECTORY.parent.parent.parent / "tests/golden/demo_reference.json"
SEED = 1
BATCH_ROWS = 512
N_SAMPLED = 2000
MAX_NEW_TOKENS = 32
N_SHOWN_MISTAKES = 3

# name of a row, kind, word problem, digits of the two numbers
ROWS = [
    ("two-digit sums", "sum", False, (2, 2)),
    ("two-digit differences", "difference", False, (2, 2)),
    ("three-digit sums", "sum", False, (3, 3)),
    ("three-digit differences", "difference", False, (3, 3)),
    ("sums of a two- and a three-digit number", "sum", False, (2, 3)),
    ("word problems, two-digit sums", "sum", True, (2, 2)),
    ("word problems, two-digit differences", "difference", True, (2, 2)),
    ("word problems, three-digit sums", "sum", True, (3, 3)),
    ("word problems, three-digit differences", "difference", True, (3, 3)),
]

# form: (text before the question's answer, the answer with its end)
FORMS = {
    "plain": lambda p: (text.BOS + text.plain_prompt(p), " " + p.answer + text.EOS),
    "chat": lambda p: (text.chat_prompt(p), p.answer + text.IM_END),
    "bare": lambda p: (text.BOS + text.bare_prompt(p), text.bare_answer(p) + text.EOS),
}


def unseen_pairs(kind, digits):
    """Every unseen two-digit pair in order; N_SAMPLED of the many larger ones."""
    if digits == (2, 2):
        numbers = range(10, 100)
        return [(a, b) for a in numbers for b in numbers
                if text.is_held_out(a, b) and (kind == "sum" or a >= b)]
    rng = random.Random(f"{SEED} {digits}")
    return [text.random_pair(rng, digits, held_out=True) for _ in range(N_SAMPLED)]


def unseen_problems(kind, words, digits):
    rng = random.Random(f"{SEED} {kind} {words} {digits}")
    return [text.make_problem(rng, kind, words, a, b) for a, b in unseen_pairs(kind, digits)]


def encode(tokenizer, prompt, answer):
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    return ids, tokenizer.encode(answer, add_special_tokens=False).ids


def check_batch(model, pairs):
    """For (prompt ids, answer ids) pairs: whether each is answered right, and the answers' losses.

    Greedy decoding gives the expected answer exactly if each of its tokens is the first choice
    after the ones before it, so one pass over prompt and answer judges all of its steps.
    """
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros([len(pairs), longest], dtype=torch.long)
    targets = torch.full([len(pairs), longest - 1], -100)
    for row, (prompt, answer) in enumerate(pairs):
        n = len(prompt) + len(answer)
        ids[row, :n] = torch.tensor(prompt + answer)
        targets[row, len(prompt) - 1 : n - 1] = torch.tensor(answer)
    logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1].float().cpu()
    right = ((logits.argmax(-1) == targets) | (targets == -100)).all(-1).tolist()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return right, losses[targets.flatten() != -100].tolist()


@torch.no_grad()
def check_problems(model, tokenizer, problems, form):
    """Number of right answers and the losses of all answer tokens; shows some wrong ones."""
    pairs = [encode(tokenizer, *FORMS[form](problem)) for problem in problems]
    right, losses = [], []
    for start in range(0, len(pairs), BATCH_ROWS):
        batch_right, batch_losses = check_batch(model, pairs[start : start + BATCH_ROWS])
        right += batch_right
        losses += batch_losses
    wrong = [problem for problem, is_right in zip(problems, right) if not is_right]
    for problem in wrong[:N_SHOWN_MISTAKES]:
        print(f"  wrong ({form}): {problem.question} -> not: {problem.answer}")
    return sum(right), losses


def print_table(model, tokenizer):
    lines, losses = [], []
    for name, kind, words, digits in ROWS:
        problems = unseen_problems(kind, words, digits)
        cells = []
        for form in FORMS:
            if form == "bare" and words:
                cells.append("")
                continue
            n_right, form_losses = check_problems(model, tokenizer, problems, form)
            losses += form_losses
            cells.append(f"{n_right} / {len(problems)} = {100 * n_right / len(problems):.2f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    print("| unseen problems | plain | chat | bare |\n|---|---|---|---|")
    print("\n".join(lines))
    print(f"\nmean loss of an answer's tokens: {sum(losses) / len(losses):.5f}")


def check_chat_template(directory):
    """The template must write what the model was trained on."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    problem = unseen_problems("sum", False, (2, 2))[0]
    messages = [{"role": "user", "content": problem.question}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == text.chat_prompt(problem), rendered


def reference_problems():
    """Eight sums of two-digit numbers and eight of the other kinds, all unseen."""
    rng = random.Random(f"{SEED} reference")
    kinds = [("sum", False, (2, 2))] * 8 + [("difference", False, (2, 2))] * 2
    kinds += [(kind, words, digits) for words, digits in [(True, (2, 2)), (False, (3, 3)),
                                                          (True, (3, 3))]
              for kind in ("sum", "difference")]
    return [text.make_problem(rng, kind, words, *text.random_pair(rng, digits, held_out=True))
            for kind, words, digits in kinds]


@torch.no_grad()
def greedy(model, prompt_ids, end_ids):
    """Greedy ids up to and with an end, and the smallest lead of a chosen logit; no KV cache."""
    ids, min_margin = list(prompt_ids), float("inf")
    while len(ids) - len(prompt_ids) < MAX_NEW_TOKENS:
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        min_margin = min(min_margin, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
        if ids[-1] in end_ids:
            break
    return ids[len(prompt_ids):], min_margin


def write_reference(path, directory, model, tokenizer):
    end_ids = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    model = model.cpu().double()
    entries = []
    for problem in reference_problems():
        prompt = text.plain_prompt(problem)
        prompt_ids = tokenizer.encode(prompt).ids
        greedy_ids, min_margin = greedy(model, prompt_ids, end_ids)
        entries.append({
            "prompt": prompt, "prompt_ids": prompt_ids, "greedy_ids": greedy_ids,
            "text": tokenizer.decode(greedy_ids), "min_margin": round(min_margin, 4),
        })
        print(f"{problem.question} ->{entries[-1]['text']} (margin {min_margin:.2f})")
    head = {
        "model": "configs/models/demo",
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "math": f"stored weights widened to float64; at most {MAX_NEW_TOKENS} new ids",
    }
    lines = [json.dumps(head)[:-1] + ', "prompts": [']
    lines += [",\n".join(json.dumps(entry) for entry in entries), "]}"]
    path.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, default=DIRECTORY)
    parser.add_argument("--reference", type=pathlib.Path, default=REFERENCE)
    args = parser.parse_args()
    check_chat_template(args.model)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device).eval()
    print_table(model, tokenizer)
    write_reference(args.reference, args.model, model, tokenizer)


if __name__ == "__main__":
    main()

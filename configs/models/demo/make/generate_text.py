#!/usr/bin/env python3
"""Writes the text that the demo model learns from: sums, differences and word problems.

A problem is a question and its answer in one whole sentence. A document is one problem or a few,
written in one of three forms: plain ("Question: ... Answer: ..."), chat (ChatML turns) or bare
("47 plus 36 is 83."). Everything follows from a seed.

Unseen problems are kept apart by their two numbers: a tenth of all unordered pairs, chosen by a
hash, appears in no training document, neither as a sum nor as a difference, in either order.

    python3 generate_text.py --count 8 --seed 0      prints some training documents
"""
import argparse
import functools
import hashlib
import random
from collections import namedtuple

BOS, EOS = "<|bos|>", "<|eos|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [BOS, EOS, IM_START, IM_END]

HELD_OUT_PERCENT = 10

# What a piece of a document is for the training loss.
PROMPT, ANSWER, GAP = range(3)

# kind: "sum" or "difference"; words: whether it is a word problem.
Problem = namedtuple("Problem", "kind words a b question answer")

PEOPLE = [
    ("Tom", "he", "him"), ("Anna", "she", "her"), ("Ben", "he", "him"), ("Clara", "she", "her"),
    ("David", "he", "him"), ("Emma", "she", "her"), ("Felix", "he", "him"), ("Grace", "she", "her"),
    ("Henry", "he", "him"), ("Ida", "she", "her"), ("Jack", "he", "him"), ("Kate", "she", "her"),
    ("Leo", "he", "him"), ("Mia", "she", "her"), ("Noah", "he", "him"), ("Olga", "she", "her"),
    ("Paul", "he", "him"), ("Rosa", "she", "her"), ("Sam", "he", "him"), ("Vera", "she", "her"),
]

THINGS = [
    "apples", "coins", "books", "marbles", "stamps", "pens", "cards", "shells", "eggs", "nuts",
    "beads", "stones", "flowers", "cookies", "tickets", "toys", "pears", "plums", "buttons",
    "candles",
]

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are good at numbers. Answer in one sentence.",
    "Answer the question in one whole sentence.",
]

SUMS = [
    ("What is {a} plus {b}?", "{a} plus {b} is {c}."),
    ("What is {a} + {b}?", "{a} plus {b} is {c}."),
    ("How much is {a} plus {b}?", "{a} plus {b} is {c}."),
    ("How much is {a} + {b}?", "{a} plus {b} is {c}."),
    ("Add {a} and {b}.", "{a} plus {b} is {c}."),
    ("What is the sum of {a} and {b}?", "The sum of {a} and {b} is {c}."),
]

DIFFERENCES = [
    ("What is {a} minus {b}?", "{a} minus {b} is {c}."),
    ("What is {a} - {b}?", "{a} minus {b} is {c}."),
    ("How much is {a} minus {b}?", "{a} minus {b} is {c}."),
    ("How much is {a} - {b}?", "{a} minus {b} is {c}."),
    ("Subtract {b} from {a}.", "{a} minus {b} is {c}."),
    ("What is the difference between {a} and {b}?", "The difference between {a} and {b} is {c}."),
]

WORD_SUMS = [
    ("{name} has {a} {things}. {other} gives {him} {b} more. "
     "How many {things} does {name} have now?",
     "{name} has {c} {things} now."),
    ("{name} has {a} {things} and {other} has {b} {things}. "
     "How many {things} do they have together?",
     "Together they have {c} {things}."),
    ("There are {a} {things} in a box and {b} {things} in a bag. "
     "How many {things} are there in all?",
     "There are {c} {things} in all."),
    ("{name} finds {a} {things} in the morning and {b} {things} in the evening. "
     "How many {things} does {he} find in all?",
     "{name} finds {c} {things} in all."),
    ("A shop sells {a} {things} on Monday and {b} {things} on Tuesday. "
     "How many {things} does it sell in two days?",
     "The shop sells {c} {things} in two days."),
    ("{name} pays {a} coins for a hat and {b} coins for a coat. How many coins does {he} pay?",
     "{name} pays {c} coins."),
    ("A train has {a} people on it. At the next stop {b} people get on. "
     "How many people are on the train now?",
     "There are {c} people on the train now."),
    ("{name} takes {a} steps to the school and {b} steps to the park. "
     "How many steps does {he} take?",
     "{name} takes {c} steps."),
]

WORD_DIFFERENCES = [
    ("{name} has {a} {things} and gives {b} of them to {other}. "
     "How many {things} does {name} have left?",
     "{name} has {c} {things} left."),
    ("{name} has {a} {things} and loses {b}. How many {things} does {he} have left?",
     "{name} has {c} {things} left."),
    ("{name} has {a} {things} and {other} has {b}. How many more {things} does {name} have?",
     "{name} has {c} more {things} than {other}."),
    ("There are {a} {things} in a shop and {b} are sold. How many {things} are left?",
     "There are {c} {things} left in the shop."),
    ("A book has {a} pages and {name} has read {b} of them. How many pages are left?",
     "There are {c} pages left."),
    ("{name} has {b} coins and wants a bike for {a} coins. How many coins does {he} still need?",
     "{name} still needs {c} coins."),
    ("A train has {a} people on it. At the next stop {b} people get off. "
     "How many people are on the train now?",
     "There are {c} people on the train now."),
    ("A farmer has {a} sheep and sells {b}. How many sheep does the farmer have now?",
     "The farmer has {c} sheep now."),
]

TEMPLATES = {
    ("sum", False): SUMS,
    ("difference", False): DIFFERENCES,
    ("sum", True): WORD_SUMS,
    ("difference", True): WORD_DIFFERENCES,
}

# Digits of the two numbers and how often: two- and three-digit numbers are the subject, and a
# few one-digit numbers keep "2 plus 2" from being a surprise.
DIGITS = [((2, 2), 38), ((3, 3), 30), ((2, 3), 10), ((3, 2), 10), ((1, 2), 4), ((2, 1), 4),
          ((1, 1), 4)]

FORMS = [("plain", 45), ("chat", 45), ("bare", 10)]


@functools.lru_cache(maxsize=None)
def is_held_out(a, b):
    """Whether the unordered pair of numbers is kept for testing."""
    pair = f"{min(a, b)},{max(a, b)}".encode()
    return int.from_bytes(hashlib.sha256(pair).digest()[:4], "big") % 100 < HELD_OUT_PERCENT


def random_number(rng, n_digits):
    return rng.randrange(10 ** (n_digits - 1), 10**n_digits)


def random_pair(rng, digits, held_out):
    while True:
        a, b = (random_number(rng, n) for n in digits)
        if is_held_out(a, b) == held_out:
            return a, b


def make_problem(rng, kind, words, a, b):
    """Words one problem about a and b; a difference takes the smaller from the larger."""
    if kind == "difference":
        a, b = max(a, b), min(a, b)
    c = a + b if kind == "sum" else a - b
    (name, he, him), (other, _, _) = rng.sample(PEOPLE, 2)
    fields = {"a": a, "b": b, "c": c, "name": name, "he": he, "him": him, "other": other,
              "things": rng.choice(THINGS)}
    question, answer = rng.choice(TEMPLATES[kind, words])
    return Problem(kind, words, a, b, question.format(**fields), answer.format(**fields))


def random_problem(rng):
    digits = rng.choices([d for d, _ in DIGITS], [weight for _, weight in DIGITS])[0]
    a, b = random_pair(rng, digits, held_out=False)
    kind = rng.choice(["sum", "difference"])
    # "1 apples" is not English: word problems leave the number one to the direct questions.
    words = rng.random() < 0.4 and min(a, b) > 1 and not (kind == "difference" and abs(a - b) == 1)
    return make_problem(rng, kind, words, a, b)


def plain_prompt(problem):
    return f"Question: {problem.question}\nAnswer:"


def chat_prompt(problem):
    return f"{IM_START}user\n{problem.question}{IM_END}\n{IM_START}assistant\n"


def bare_prompt(problem):
    return f"{problem.a} {'plus' if problem.kind == 'sum' else 'minus'} {problem.b} is"


def bare_answer(problem):
    c = problem.a + problem.b if problem.kind == "sum" else problem.a - problem.b
    return f" {c}."


def plain_document(problems):
    """BOS and question-answer pairs; the model stops after each answer, whatever follows."""
    pieces = [(BOS, PROMPT)]
    for i, problem in enumerate(problems):
        pieces.append(("\n\n" if i > 0 else "", GAP))
        pieces.append((plain_prompt(problem), PROMPT))
        pieces.append((" " + problem.answer, ANSWER))
    return pieces + [(EOS, ANSWER)]


def chat_document(problems, system_prompt):
    """ChatML turns, exactly as the chat template writes them: without BOS."""
    pieces = []
    if system_prompt is not None:
        pieces.append((f"{IM_START}system\n{system_prompt}{IM_END}\n", GAP))
    for problem in problems:
        pieces.append((chat_prompt(problem), PROMPT))
        pieces.append((problem.answer + IM_END, ANSWER))
        pieces.append(("\n", GAP))
    return pieces


def bare_document(problem):
    return [(BOS + bare_prompt(problem), PROMPT), (bare_answer(problem), ANSWER), (EOS, ANSWER)]


def random_document(rng, n_problems):
    """A training document as a list of (text, PROMPT | ANSWER | GAP)."""
    problems = [random_problem(rng) for _ in range(n_problems)]
    form = rng.choices([f for f, _ in FORMS], [weight for _, weight in FORMS])[0]
    if form == "chat":
        system_prompt = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.25 else None
        return chat_document(problems, system_prompt)
    if form == "bare" and n_problems == 1:
        return bare_document(problems[0])
    return plain_document(problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.count):
        print("".join(text for text, _ in random_document(rng, rng.choice([1, 1, 1, 2]))))
        print("-" * 40)


if __name__ == "__main__":
    main()

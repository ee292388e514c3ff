"""Writes variants.json: small tokenizers of many kinds, texts, and what the reference makes of them.

    python3 tests/golden/tokenizer/make_variants.py > tests/golden/tokenizer/variants.json

Needs Hugging Face's tokenizers (made with 0.23.3). Every variant is one of two base files with some
members replaced. There is one result per text: ids, ids with special tokens, the text of the ids,
the same without special tokens; null stands for "as the one before", the first text being the input.
"""
import copy
import json
import random
import sys

from tokenizers import Tokenizer

SPACE = "\u2581"


def byte_alphabet():
    """GPT-2's: printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    chars = {b: chr(b) for b in printable}
    chars.update({b: chr(256 + i) for i, b in enumerate(rest)})
    return [chars[b] for b in range(256)]


def learn(words, vocab, n):
    """The n most frequent merges, by the textbook."""
    words = [list(w) for w in words]
    merges = []
    for _ in range(n):
        counts = {}
        for w in words:
            for pair in zip(w, w[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            break
        a, b = max(counts, key=lambda p: (counts[p], p))
        merges.append([a, b])
        if a + b not in vocab:
            vocab[a + b] = len(vocab)
        for k, w in enumerate(words):
            out = []
            for s in w:
                if out and out[-1] == a and s == b:
                    out[-1] = a + b
                else:
                    out.append(s)
            words[k] = out
    return merges


CORPUS = (
    "the cat sat on the mat and the rat ran at the cat's hat 12 123 1234 don't I'll we've "
    "here there then than that this is his hers a banana bandana ababab aaaa nanana "
) * 2


def added(id, content, **flags):
    token = {
        "id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": False,
    }
    token.update(flags)
    return token


def byte_level(**settings):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **settings}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def template(*single):
    items = [
        {"Sequence": {"id": "A", "type_id": 0}} if s == "A" else {"SpecialToken": {"id": s, "type_id": 0}}
        for s in single
    ]
    tokens = {s: {"id": s, "ids": [IDS[s]], "tokens": [s]} for s in single if s != "A"}
    return {
        "type": "TemplateProcessing", "single": items, "special_tokens": tokens,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    }


IDS = {}


def bytes_base():
    alphabet = byte_alphabet()
    vocab = {c: i for i, c in enumerate(alphabet)}
    words = [w.replace(" ", "\u0120") for w in CORPUS.replace(" ", "  ").split(" ") if w]
    words = [w if k == 0 else "\u0120" + w for k, w in enumerate(words)]
    merges = learn(words, vocab, 120)
    for unreachable in ("zq", "\u0120zqx", "\u00c3\u00a9"):
        vocab[unreachable] = len(vocab)
    n = len(vocab)
    IDS.update({"<s>": n, "</s>": n + 1})
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(n, "<s>", special=True), added(n + 1, "</s>", special=True)],
        "normalizer": None, "pre_tokenizer": byte_level(), "post_processor": byte_level(),
        "decoder": byte_level(),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": vocab, "merges": merges,
        },
    }


def chars_base():
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    for c in SPACE + "abcdefghijklmnopqrstuvwxyz0123456789'.,!?<>/I" + "\n\u00e9\u4e16":
        vocab.setdefault(c, len(vocab))
    merges = learn([SPACE + CORPUS.replace(" ", SPACE)], vocab, 120)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(0, "<unk>", special=True), added(1, "<s>", special=True),
                         added(2, "</s>", special=True, rstrip=True)],
        "normalizer": sequence("normalizers", {"type": "Prepend", "prepend": SPACE},
                               {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}),
        "pre_tokenizer": None, "post_processor": template("<s>", "A"),
        "decoder": sequence("decoders",
                            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                            {"type": "ByteFallback"}, {"type": "Fuse"},
                            {"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
            "merges": [" ".join(m) for m in merges],
        },
    }


LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
QWEN = LLAMA3.replace("\\p{N}{1,3}", "\\p{N}")


def bytes_variants(base):
    n = max(IDS.values()) + 1
    raw = byte_level(use_regex=False)
    yield "byte level", {}
    yield "byte level with a space put in front", {"pre_tokenizer": byte_level(add_prefix_space=True)}
    yield "byte level without a decoder", {"decoder": None}
    yield "Llama-3", {
        "pre_tokenizer": sequence("pretokenizers", split({"Regex": LLAMA3}), raw),
        "post_processor": sequence("processors", byte_level(), template("<s>", "A")),
        "model": {"ignore_merges": True},
    }
    yield "Qwen", {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": sequence("pretokenizers", split({"Regex": QWEN}), raw),
    }
    yield "tokens around the text", {"post_processor": template("<s>", "<s>", "A", "</s>")}
    yield "digits one by one", {
        "pre_tokenizer": sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level())}
    yield "digits together", {
        "pre_tokenizer": sequence("pretokenizers", {"type": "Digits", "individual_digits": False}, byte_level())}
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            yield f"split {behavior}{' inverted' if invert else ''}", {
                "pre_tokenizer": sequence("pretokenizers", split({"Regex": "[ae\\s]"}, behavior, invert), raw)}
    yield "split at a string that looks like a pattern", {
        "pre_tokenizer": sequence("pretokenizers", split({"String": "."}, "MergedWithPrevious"), raw)}
    yield "split where a pattern matches nothing", {
        "pre_tokenizer": sequence("pretokenizers", split({"Regex": "x*"}), raw)}
    yield "split at lines", {
        "pre_tokenizer": sequence("pretokenizers", split({"Regex": "^[^\\n]{1,4}|.$"}), raw)}
    yield "added tokens with flags", {"added_tokens": base["added_tokens"] + [
        added(n, "cat", single_word=True), added(n + 1, "<L>", lstrip=True),
        added(n + 2, "<R>", rstrip=True), added(n + 3, "<LR>", lstrip=True, rstrip=True, special=True),
        added(n + 4, "<LRX>"), added(n + 5, "  "), added(n + 6, "\u4e16", single_word=True),
        added(n + 7, "<s><s>", special=True), added(n + 8, "the t", normalized=True)]}


def chars_variants(base):
    meta = {"type": "Metaspace", "replacement": SPACE}
    yield "Llama-2", {}
    yield "no decoder", {"decoder": None}
    yield "bytes are not tokens", {"model": {"byte_fallback": False}}
    yield "every unknown character apart", {"model": {"byte_fallback": False, "fuse_unk": False}}
    yield "nothing for unknown characters", {"model": {"byte_fallback": False, "unk_token": None}}
    lacking = {k: v for k, v in base["model"]["vocab"].items() if k != "<0xA9>"}
    yield "a byte is missing", {"model": {"vocab": lacking}}
    for scheme in ("always", "first", "never"):
        for cut in (True, False):
            component = {**meta, "prepend_scheme": scheme, "split": cut}
            yield f"Metaspace {scheme}{'' if cut else ', not split'}", {
                "normalizer": None, "pre_tokenizer": component, "decoder": component}
    yield "Metaspace as it was written once", {
        "normalizer": None, "pre_tokenizer": {**meta, "add_prefix_space": True},
        "decoder": {**meta, "add_prefix_space": True}}
    yield "words end in a mark", {"decoder": {"type": "BPEDecoder", "suffix": SPACE}}
    yield "added tokens in the normalised text", {"added_tokens": [
        added(0, "<unk>", special=False, normalized=True), added(1, "<s>", normalized=True),
        added(2, "</s>", normalized=True)]}


def texts():
    rnd = random.Random(5)
    fixed = [
        "", " ", "  ", "a", " a", "a ", "the cat sat on the mat", "  the   cat\n\nsat  ", "\n", "\r\n", "\t\t x",
        "don't I'LL we'Ve 'S 's '\u017f", "12 123 1234 12345 \u0663\u0664 \u00bd\u2167", "a.b..c ...", "zq zqx  zqx zqxy",
        "caf\u00e9 e\u0301 \u1e9b\u0323 \uac00 \u1100\u1161", "\u4e16\u754c \u4f60\u597d", "\U0001f642\U0001f468\u200d\U0001f469",
        "<s>", "<s><s>", "<s></s>  the", "a <s> b</s> c", "x<s>y", "<L> a <L>b", "a  <L>  <L>", "<R>  \n a<R>",
        " <LR> <LR>  <R>  <LR>", "cat concat cat, cat's cats  cat", "\u4e16 x\u4e16 \u4e16", "<LRX><LR><L", "the<LR>the then",
        "a\u00a0b\u3000c\u2028d\u0085e\u180ef\u200bg", "\u00ad\u007f\u0001", SPACE + " " + SPACE + SPACE, "<0x41><0xE4>", "<unk> <unk>",
        "\u00a9\u4e16\u00a9 x\u00a9", "\u0416a\u0416\u0416 b\u0416", "x" * 50, "line one\nline two\nl", "aeiou  aa e", "\u0120\u010a",
    ]
    pieces = CORPUS.split(" ") + [" ", "  ", "\n", "\u00e9", "\u4e16", "<s>", "</s>", "'", "9", "\U0001f600"]
    mixed = ["".join(rnd.choice(pieces) + rnd.choice(["", " "]) for _ in range(rnd.randrange(1, 9))) for _ in range(12)]
    words = ["".join(rnd.choice("aabnth") for _ in range(n)) for n in (35, 36, 37, 38, 300)]
    marks = ["a" + "\u0301\u0323\u0327\u0301" * 20 + "b" + "\u0f72\u0f71" * 3, "\u0323\u0301" * 33 + "e"]
    return fixed + marks + mixed + words + ["a" * 77, "banana" * 12]


def patched(base, patch):
    out = copy.deepcopy(base)
    for key, value in patch.items():
        if key == "model":
            out["model"].update(value)
        else:
            out[key] = value
    return out


def results(tokenizer):
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        special = tokenizer.encode(text).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        yield [ids, None if special == ids else special, None if decoded == text else decoded,
               None if skipped == decoded else skipped]


def main():
    bases = {"bytes": bytes_base(), "chars": chars_base()}
    variants = []
    for name, make in (("bytes", bytes_variants), ("chars", chars_variants)):
        for title, patch in make(bases[name]):
            tokenizer = Tokenizer.from_str(json.dumps(patched(bases[name], patch)))
            variants.append({"name": title, "base": name, "patch": patch, "results": list(results(tokenizer))})
    sys.stdout.write('{"bases": %s,\n"texts": %s,\n"variants": [\n' % (json.dumps(bases), json.dumps(texts())))
    sys.stdout.write(",\n".join(json.dumps(v, separators=(",", ":")) for v in variants) + "\n]}\n")


main()

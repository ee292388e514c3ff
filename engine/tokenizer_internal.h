/* tokenizer_internal.h - what the files of the tokenizer share; nobody else includes it.
 *
 * Text passes these stages on its way to ids, one file each:
 *
 *   tokenizer.c            valid UTF-8, the order of the stages
 *   tokenizer_added.c      splits at added tokens, before and after normalising
 *   tokenizer_normalize.c  NFC, Prepend, Replace
 *   tokenizer_split.c      pre-tokenisation: text into words
 *   bpe.c                  a word into ids: symbols merged in the order of their rank
 *
 * and tokenizer_decode.c leads from ids back to text. Loading: tokenizer_scan.c reads the two
 * tables that make up 99 % of a tokenizer.json, tokenizer_vocab.c and bpe.c keep them, jansson and
 * tokenizer_component.c read the rest, tokenizer_load.c puts the parts together.
 *
 * The behaviour is that of Hugging Face's tokenizers library, version 0.23.
 */
#ifndef QUIRE_TOKENIZER_INTERNAL_H
#define QUIRE_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/text.h"
#include "engine/tokenizer.h"

#define TOKENIZER_MAX_MERGES ((size_t)1 << 22)
#define TOKENIZER_MAX_ADDED  ((size_t)1 << 16)
#define COMPONENT_MAX_PARTS  16 /* of a normaliser, a pre-tokeniser, a decoder, a post-processor */
#define TOKENIZER_MAX_STEPS  (3 * COMPONENT_MAX_PARTS) /* a part is at most three steps */

/* ---- tokenizer_component.c: strict access to the small parts of tokenizer.json ---- */
/* The "type" of a component, or NULL with ERR_DATA; `what` names it in messages. Borrowed. */
const char *component_type(const json_t *component, const char *what);
/* Records that a component is none that quire knows. Always returns -1. */
int component_unknown(const char *what, const char *type);
/* Reads a member; a missing or null one leaves *value as it is, another type is ERR_DATA. */
int component_bool(const json_t *component, const char *key, bool *value);
int component_text(const json_t *component, const char *key, const char **value);
/* Reads a member that must be there: an integer in 0 .. limit - 1. */
int component_int(const json_t *component, const char *key, size_t limit, int *value);
/* Calls load(target, part, its type) for each part of a component of type Sequence, whose list is
 * the member `key`, or once for any other component; a missing or null one has no parts. More
 * than COMPONENT_MAX_PARTS parts, those of sequences in sequences included, are ERR_DATA. */
typedef int (*component_loader)(void *target, const json_t *component, const char *type);
int component_each(const json_t *component, const char *what, const char *key,
                   component_loader load, void *target);
/* Reads the pattern of a Split or a Replace: {"String": text} or {"Regex": text}. */
int component_pattern(const json_t *component, const char *what, const char **text, bool *regex);

/* ---- tokenizer_scan.c: a strict reader of JSON text that allocates nothing ---- */
/* Reads n bytes of JSON text; text[n] is NUL. */
struct scan {
    const char *text;
    size_t at, n;
};
/* Records ERR_DATA "line L, column C: problem" for the current position. Always returns -1. */
int scan_fail(const struct scan *s, const char *problem);
/* Skips white space and then `c`. scan_skip returns false when something else is next. */
int scan_expect(struct scan *s, char c);
bool scan_skip(struct scan *s, char c);
/* Appends the content of a string to out: escapes resolved, UTF-8 checked. */
int scan_string(struct scan *s, struct str *out);
/* A number without sign, fraction and exponent, below limit. */
int scan_int(struct scan *s, size_t limit, int *value);
/* Skips a value without looking into it: whoever reads it finds its errors. */
int scan_value(struct scan *s);

/* ---- tokenizer_vocab.c: contents of the tokens by id, ids by content ---- */
#define TOKEN_ABSENT  UINT32_MAX
#define TOKEN_MAX_LEN 0x3FFFFFFFu /* FILE_MAX_BYTES is no more */
struct token {
    uint32_t start; /* in arena; TOKEN_ABSENT: this id stands for nothing */
    uint32_t len : 30, special : 1, normalized : 1; /* the flags of an added token */
};

struct vocab {
    struct str arena;     /* the contents, one after the other              */
    struct token *tokens; /* [n_ids], added tokens included                 */
    size_t n_ids, capacity;
    uint32_t *slots; /* [n_slots] only of the model's table; 0: empty       */
    size_t n_slots;  /* a power of two                                      */
};
/* Reads the JSON object {"content": id, ...}. */
int vocab_load(struct vocab *v, struct scan *s);
void vocab_free(struct vocab *v);
/* The id of a token of the model's table, or -1. */
int vocab_find(const struct vocab *v, const char *text, size_t n);
/* Gives an id beyond the table a content. ERR_DATA when it stands for another one already. */
int vocab_set(struct vocab *v, int id, const char *text, size_t n);
/* The content of an id; NULL when it stands for nothing. Borrowed, not NUL-terminated. */
const char *vocab_get(const struct vocab *v, int id, size_t *n);

/* ---- bpe.c: byte pair encoding ---- */
#define BPE_DIRECT_CHARS 0x180 /* covers ASCII, Latin and the byte-level alphabet */

struct bpe_pair {
    int left, right;
    unsigned rank; /* BPE_NO_RANK: an empty slot */
    int merged;
};

struct bpe {
    const struct vocab *vocab;
    struct bpe_pair *pairs;       /* [n_slots] open addressing on (left, right) */
    size_t n_slots;               /* a power of two; 0: no merges               */
    int direct[BPE_DIRECT_CHARS]; /* id of each of the first characters, or -1 */
    int byte_ids[256];            /* <0x00> ... <0xFF>, or -1                  */
    int unk;                      /* or -1                                     */
    bool byte_fallback, fuse_unk, ignore_merges;
};
/* Reads the JSON array of merges, ["a b", ...] or [["a", "b"], ...]; vocab must be loaded. */
int bpe_load_merges(struct bpe *b, const struct vocab *vocab, struct scan *s);
/* Reads the model's other settings from `model`, once vocab and merges are there. */
int bpe_load_settings(struct bpe *b, const struct vocab *vocab, const json_t *model);
void bpe_free(struct bpe *b);

/* Scratch memory of one call of bpe_encode. Zero-initialise; free with bpe_scratch_free. */
struct bpe_scratch {
    struct bpe_symbol *symbols;
    size_t n_symbols, symbol_capacity;
    uint64_t *heap; /* rank << 32 | position: the next merges, the smallest first */
    size_t n_heap, heap_capacity;
};
void bpe_scratch_free(struct bpe_scratch *scratch);
/* Appends the ids of a word (valid UTF-8). Cost: O(n log n). */
void bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, struct token_list *out,
                const char *word, size_t n);

/* ---- tokenizer_added.c: tokens that are found in the text before anything else ---- */
struct added_token {
    char *text; /* what is searched: the content, normalised for those that ask for it */
    size_t n, order;
    int id;
    bool single_word, lstrip, rstrip;
};

struct added_set {
    struct added_token *tokens; /* sorted by text                                  */
    size_t n_tokens, capacity;
    bool starts[256]; /* the bytes that tokens start with, so that most text is skipped */
};
/* Takes a copy of token with the given text; call added_sort after the last one. Of tokens with the
 * same text the first one counts. */
void added_push(struct added_set *set, const struct added_token *token, const char *text, size_t n);
void added_sort(struct added_set *set);
/* The id of the token whose content in vocab is text[n], or -1. */
int added_find(const struct added_set *set, const struct vocab *v, const char *text, size_t n);
/* The text that is searched for an id; NULL when it is not in the set. Borrowed. */
const char *added_text(const struct added_set *set, int id, size_t *n);
void added_free(struct added_set *set);

/* Where an added token was found. */
struct added_piece {
    size_t start, len;
    int id;
};
/* Finds the first token at or after *search in text[n]: the leftmost, of those the longest. Writes
 * the piece it covers (lstrip and rstrip included; never before *covered) and moves *search and
 * *covered behind it. False when there is none. */
bool added_next(const struct added_set *set, const char *text, size_t n, size_t *search,
                size_t *covered, struct added_piece *piece);

/* ---- tokenizer_normalize.c ---- */
enum normalize_kind { NORMALIZE_NFC, NORMALIZE_PREPEND, NORMALIZE_REPLACE };
struct normalize_step {
    enum normalize_kind kind;
    char *from, *to; /* PREPEND: to; REPLACE: both */
};
struct normalizer {
    struct normalize_step steps[TOKENIZER_MAX_STEPS];
    size_t n_steps;
};
int normalizer_load(struct normalizer *z, const json_t *component);
void normalizer_free(struct normalizer *z);
/* Replaces *text by its normal form; text must be valid UTF-8. */
void normalizer_apply(const struct normalizer *z, struct str *text);

/* ---- tokenizer_split.c ---- */
enum split_kind {
    SPLIT_PATTERN,      /* cut where a pattern matches                                */
    SPLIT_PREFIX_SPACE, /* put a space before a word that has none                    */
    SPLIT_METASPACE,    /* spaces become `replacement`, and one goes before the word  */
    SPLIT_BYTES,        /* every byte becomes a character of the byte-level alphabet  */
};
enum split_behavior {
    BEHAVIOR_REMOVED,
    BEHAVIOR_ISOLATED,
    BEHAVIOR_MERGED_WITH_PREVIOUS,
    BEHAVIOR_MERGED_WITH_NEXT,
    BEHAVIOR_CONTIGUOUS,
};
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct split_step {
    enum split_kind kind;
    pcre2_code *code; /* SPLIT_PATTERN */
    enum split_behavior behavior;
    bool invert;
    char *replacement; /* SPLIT_METASPACE */
    enum prepend_scheme scheme;
};
struct splitter {
    struct split_step steps[TOKENIZER_MAX_STEPS];
    size_t n_steps;
    pcre2_match_context *limits;
};
int splitter_load(struct splitter *z, const json_t *component);
void splitter_free(struct splitter *z);

struct span {
    size_t start, len;
};
/* A text and the words in it, in order. Zero-initialise; free with words_free. */
struct words {
    struct str text;
    struct span *spans;
    size_t n, capacity;
};
void words_free(struct words *w);
/* Splits words->text, taken as one word, into words; `first` says that it is the beginning of the
 * whole text. `spare` is scratch memory. ERR_DATA when a pattern gives up on a hostile text. */
int splitter_apply(const struct splitter *z, struct words *words, struct words *spare, bool first);

/* Reads a Metaspace component, which is a pre-tokeniser and a decoder. */
int metaspace_load(const json_t *component, const char **replacement, enum prepend_scheme *scheme);

/* The byte-level alphabet of GPT-2: every byte as a printable character. */
uint32_t byte_to_char(unsigned char byte);
/* The byte that a character stands for, or -1. */
int char_to_byte(uint32_t code_point);

/* ---- tokenizer_decode.c ---- */
enum decode_kind {
    DECODE_REPLACE,       /* in every token: from -> to                                       */
    DECODE_BYTE_FALLBACK, /* <0xAB> is a byte                                                 */
    DECODE_BYTE_LEVEL,    /* characters of the byte-level alphabet are bytes                  */
    DECODE_METASPACE,     /* `from` is a space; in the first token nothing, if `drop_first`   */
    DECODE_SUFFIX,        /* `from` is a space, except in the last token                      */
};
struct decode_step {
    enum decode_kind kind;
    char *from, *to;
    bool drop_first;
};
struct decoder {
    struct decode_step steps[TOKENIZER_MAX_STEPS]; /* applied to each token */
    size_t n_steps;
    bool fused;        /* no per-token step may follow                    */
    bool join_spaces;  /* the file has no decoder: tokens stand apart     */
    bool has_suffix;   /* the last token differs: hold one token back     */
    bool per_byte;     /* an invalid part gives one U+FFFD for each byte  */
    char *strip;       /* the text that is taken off the front ...        */
    size_t strip_most; /* ... at most so many times                       */
};
int decoder_load(struct decoder *z, const json_t *component);
void decoder_free(struct decoder *z);

/* ---- tokenizer_load.c ---- */
struct tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct added_set raw_added;        /* found in the text as it comes       */
    struct added_set normalized_added; /* found in the normalised text        */
    struct normalizer normalizer;
    struct splitter splitter;
    struct decoder decoder;
    struct token_list prefix, suffix; /* what the post-processor adds */
    bool has_template;
    int bos, eos;
    char *bos_text, *eos_text, *chat_template;
    char fingerprint[SHA256_HEX_LEN + 1];
};
/* Fills a zeroed tokenizer from the text of a tokenizer.json (text[n] must be NUL). On failure the
 * caller still frees it with tokenizer_close. */
int tokenizer_load(struct tokenizer *t, const char *text, size_t n);

#endif

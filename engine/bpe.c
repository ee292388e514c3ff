/* bpe.c - byte pair encoding: a word becomes symbols, and symbols are merged by rank.
 *
 * A word starts as one symbol per character. The pair of neighbours with the lowest rank (the
 * leftmost of equals) becomes one symbol, until no pair of neighbours is in the list of merges.
 * Symbols are a linked list in an array; each knows the rank of the pair that it starts.
 *
 * Words of text are short, and looking at every symbol for the lowest rank is fastest for them. A
 * model without a pre-tokeniser, or a megabyte of letters, makes one long word: there a heap of
 * (rank, position) keeps the cost at O(n log n). An entry of the heap whose symbol has another rank
 * by now is stale and is dropped when it comes up.
 */
#include "engine/tokenizer_internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BPE_NO_RANK UINT32_MAX
/* Up to 36 symbols scanning beats the heap: a megabyte of English letters in words of 32 takes
 * 98 against 103 ms, in words of 48 122 against 108 ms. */
#define BPE_SCAN_LIMIT  36
#define BYTE_TOKEN_SIZE 8 /* "<0xAB>" and a NUL */

struct bpe_symbol {
    int id, prev, next; /* prev, next: positions, -1 at the ends */
    unsigned rank;      /* of this symbol and the next one       */
    int merged;         /* the id that they become               */
};

/* ---- the table of merges ---- */

static size_t pair_slot(const struct bpe *b, int left, int right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t mask = b->n_slots - 1, at = mix64(key) & mask;
    while (b->pairs[at].rank != BPE_NO_RANK &&
           (b->pairs[at].left != left || b->pairs[at].right != right))
        at = (at + 1) & mask;
    return at;
}

/* Of a pair that is listed twice the later rank counts, as in the reference. */
static void build_pairs(struct bpe *b, const struct bpe_pair *list, size_t n)
{
    b->n_slots = 16;
    while (b->n_slots * 3 < n * 5)
        b->n_slots *= 2;
    b->pairs = xmalloc(b->n_slots * sizeof(*b->pairs));
    for (size_t i = 0; i < b->n_slots; i++)
        b->pairs[i].rank = BPE_NO_RANK;
    for (size_t i = 0; i < n; i++)
        b->pairs[pair_slot(b, list[i].left, list[i].right)] = list[i];
}

/* Reads one merge, of either form, into text; *left is the length of its first part. */
static int read_merge(struct scan *s, struct str *text, size_t *left)
{
    str_clear(text);
    if (scan_skip(s, '[')) {
        if (scan_string(s, text) < 0)
            return -1;
        *left = text->len;
        return scan_expect(s, ',') < 0 || scan_string(s, text) < 0 ? -1 : scan_expect(s, ']');
    }
    if (scan_string(s, text) < 0)
        return -1;
    char *space = memchr(text->data, ' ', text->len);
    if (!space || memchr(space + 1, ' ', text->len - (size_t)(space + 1 - text->data)))
        return scan_fail(s, "a merge that is not two tokens with a space between them");
    *left = (size_t)(space - text->data);
    memmove(space, space + 1, text->len - *left);
    text->len--;
    return 0;
}

static int resolve_merge(struct bpe_pair *pair, const struct vocab *v, const struct str *text,
                         size_t left)
{
    pair->left = vocab_find(v, text->data, left);
    pair->right = vocab_find(v, text->data + left, text->len - left);
    pair->merged = vocab_find(v, text->data, text->len);
    if (pair->left >= 0 && pair->right >= 0 && pair->merged >= 0)
        return 0;
    return err_set(ERR_DATA, "merge %u of '%.*s' and '%.*s' names a token that is not in the table",
                   pair->rank, (int)MIN(left, (size_t)100), text->data,
                   (int)MIN(text->len - left, (size_t)100), text->data + left);
}

/* Lists of merges that start with a comment are as old as GPT-2. */
static bool is_version_line(const struct str *text)
{
    return text->len >= 8 && memcmp(text->data, "#version", 8) == 0;
}

static int read_merges(struct scan *s, const struct vocab *v, struct bpe_pair **list, size_t *n)
{
    struct str text = {0};
    size_t capacity = 0, left = 0;
    int result = 0;
    do {
        result = read_merge(s, &text, &left);
        if (result < 0 || is_version_line(&text))
            continue;
        if (*n == TOKENIZER_MAX_MERGES) {
            result = scan_fail(s, "too many merges");
            continue;
        }
        array_reserve(list, &capacity, *n + 1, sizeof(**list));
        struct bpe_pair *pair = &(*list)[*n];
        pair->rank = (unsigned)(*n)++;
        result = resolve_merge(pair, v, &text, left);
    } while (result == 0 && scan_skip(s, ','));
    str_free(&text);
    return result;
}

int bpe_load_merges(struct bpe *b, const struct vocab *vocab, struct scan *s)
{
    struct bpe_pair *list = NULL;
    size_t n = 0;
    int result = 0;
    if (b->pairs)
        return scan_fail(s, "a second list of merges");
    if (scan_expect(s, '[') < 0)
        return -1;
    if (!scan_skip(s, ']')) {
        result = read_merges(s, vocab, &list, &n);
        if (result == 0)
            result = scan_expect(s, ']');
    }
    if (result == 0)
        build_pairs(b, list, n);
    free(list);
    return result;
}

void bpe_free(struct bpe *b)
{
    free(b->pairs);
}

/* ---- settings ---- */

static int refuse_affix(const json_t *model, const char *key)
{
    const char *affix = "";
    if (component_text(model, key, &affix) < 0)
        return -1;
    if (affix[0])
        return err_set(ERR_DATA, "model: %s '%.20s' is not supported", key, affix);
    return 0;
}

static int load_unk(struct bpe *b, const json_t *model)
{
    const char *unk = NULL;
    b->unk = -1;
    if (component_text(model, "unk_token", &unk) < 0)
        return -1;
    if (!unk)
        return 0;
    b->unk = vocab_find(b->vocab, unk, strlen(unk));
    if (b->unk < 0)
        return err_set(ERR_DATA, "model: unk_token '%.100s' is not in the vocabulary", unk);
    return 0;
}

static void fill_tables(struct bpe *b)
{
    struct str text = {0};
    for (uint32_t c = 0; c < BPE_DIRECT_CHARS; c++) {
        str_clear(&text);
        text_append_char(&text, c);
        b->direct[c] = vocab_find(b->vocab, text.data, text.len);
    }
    str_free(&text);
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[BYTE_TOKEN_SIZE];
        int n = snprintf(name, sizeof(name), "<0x%02X>", byte);
        b->byte_ids[byte] = b->byte_fallback ? vocab_find(b->vocab, name, (size_t)n) : -1;
    }
}

int bpe_load_settings(struct bpe *b, const struct vocab *vocab, const json_t *model)
{
    b->vocab = vocab;
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        return err_set(ERR_DATA, "model: dropout is not supported");
    if (refuse_affix(model, "continuing_subword_prefix") < 0 ||
        refuse_affix(model, "end_of_word_suffix") < 0 ||
        component_bool(model, "byte_fallback", &b->byte_fallback) < 0 ||
        component_bool(model, "fuse_unk", &b->fuse_unk) < 0 ||
        component_bool(model, "ignore_merges", &b->ignore_merges) < 0 || load_unk(b, model) < 0)
        return -1;
    fill_tables(b);
    return 0;
}

/* ---- a word into symbols ---- */

static void push_symbol(struct bpe_scratch *scratch, int id)
{
    array_reserve(&scratch->symbols, &scratch->symbol_capacity, scratch->n_symbols + 1,
                  sizeof(*scratch->symbols));
    int at = (int)scratch->n_symbols++;
    scratch->symbols[at] = (struct bpe_symbol){.id = id, .prev = at - 1, .next = at + 1};
}

/* A character as its bytes' tokens; false when one of them is missing. */
static bool push_bytes(const struct bpe *b, struct bpe_scratch *scratch, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (b->byte_ids[(unsigned char)s[i]] < 0)
            return false;
    }
    for (size_t i = 0; i < n; i++)
        push_symbol(scratch, b->byte_ids[(unsigned char)s[i]]);
    return true;
}

/* An unknown character waits in `unk` for the next known one, which unites a run of them when
 * fuse_unk is set; like the reference, bytes do not end such a run. */
static void push_symbols(const struct bpe *b, struct bpe_scratch *scratch, const char *word,
                         size_t n)
{
    size_t len;
    bool waiting = false;
    scratch->n_symbols = 0;
    for (size_t at = 0; at < n; at += len) {
        uint32_t c = text_next(word + at, n - at, &len);
        assert(c != TEXT_INVALID);
        int id = c < BPE_DIRECT_CHARS ? b->direct[c] : vocab_find(b->vocab, word + at, len);
        if (id < 0 && push_bytes(b, scratch, word + at, len))
            continue;
        if (id < 0 && b->unk < 0)
            continue;
        if (waiting && (id >= 0 || !b->fuse_unk)) {
            push_symbol(scratch, b->unk);
            waiting = false;
        }
        if (id >= 0)
            push_symbol(scratch, id);
        else
            waiting = true;
    }
    if (waiting)
        push_symbol(scratch, b->unk);
}

/* ---- merging ---- */

/* Looks up the pair that starts at a position. */
static void update_rank(const struct bpe *b, struct bpe_symbol *symbols, int at)
{
    struct bpe_symbol *symbol = &symbols[at];
    symbol->rank = BPE_NO_RANK;
    if (symbol->next < 0 || b->n_slots == 0)
        return;
    const struct bpe_pair *pair = &b->pairs[pair_slot(b, symbol->id, symbols[symbol->next].id)];
    symbol->rank = pair->rank;
    symbol->merged = pair->merged;
}

static void merge_with_next(const struct bpe *b, struct bpe_symbol *symbols, int at)
{
    struct bpe_symbol *symbol = &symbols[at], *right = &symbols[symbol->next];
    symbol->id = symbol->merged;
    symbol->next = right->next;
    right->rank = BPE_NO_RANK;
    if (right->next >= 0)
        symbols[right->next].prev = at;
    update_rank(b, symbols, at);
    if (symbol->prev >= 0)
        update_rank(b, symbols, symbol->prev);
}

static void merge_short(const struct bpe *b, struct bpe_symbol *symbols)
{
    for (;;) {
        int best = 0;
        for (int at = 0; at >= 0; at = symbols[at].next) {
            if (symbols[at].rank < symbols[best].rank)
                best = at;
        }
        if (symbols[best].rank == BPE_NO_RANK)
            return;
        merge_with_next(b, symbols, best);
    }
}

static void heap_push(struct bpe_scratch *scratch, int at)
{
    uint64_t entry = (uint64_t)scratch->symbols[at].rank << 32 | (uint32_t)at;
    size_t hole = scratch->n_heap++;
    array_reserve(&scratch->heap, &scratch->heap_capacity, scratch->n_heap, sizeof(entry));
    for (; hole > 0 && scratch->heap[(hole - 1) / 2] > entry; hole = (hole - 1) / 2)
        scratch->heap[hole] = scratch->heap[(hole - 1) / 2];
    scratch->heap[hole] = entry;
}

static uint64_t heap_pop(struct bpe_scratch *scratch)
{
    uint64_t top = scratch->heap[0], last = scratch->heap[--scratch->n_heap];
    size_t hole = 0, n = scratch->n_heap;
    for (size_t child; (child = 2 * hole + 1) < n; hole = child) {
        if (child + 1 < n && scratch->heap[child + 1] < scratch->heap[child])
            child++;
        if (last <= scratch->heap[child])
            break;
        scratch->heap[hole] = scratch->heap[child];
    }
    scratch->heap[hole] = last;
    return top;
}

static void push_if_pair(struct bpe_scratch *scratch, int at)
{
    if (at >= 0 && scratch->symbols[at].rank != BPE_NO_RANK)
        heap_push(scratch, at);
}

static void merge_long(const struct bpe *b, struct bpe_scratch *scratch)
{
    struct bpe_symbol *symbols = scratch->symbols;
    scratch->n_heap = 0;
    for (size_t at = 0; at < scratch->n_symbols; at++)
        push_if_pair(scratch, (int)at);
    while (scratch->n_heap > 0) {
        uint64_t entry = heap_pop(scratch);
        int at = (int)(entry & UINT32_MAX);
        if (symbols[at].rank != entry >> 32)
            continue;
        merge_with_next(b, symbols, at);
        push_if_pair(scratch, at);
        push_if_pair(scratch, symbols[at].prev);
    }
}

void bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, struct token_list *out,
                const char *word, size_t n)
{
    if (b->ignore_merges) {
        int id = vocab_find(b->vocab, word, n);
        if (id >= 0) {
            token_list_push(out, id);
            return;
        }
    }
    push_symbols(b, scratch, word, n);
    if (scratch->n_symbols == 0)
        return;
    struct bpe_symbol *symbols = scratch->symbols;
    symbols[scratch->n_symbols - 1].next = -1;
    for (size_t at = 0; at < scratch->n_symbols; at++)
        update_rank(b, symbols, (int)at);
    if (scratch->n_symbols <= BPE_SCAN_LIMIT)
        merge_short(b, symbols);
    else
        merge_long(b, scratch);
    for (int at = 0; at >= 0; at = symbols[at].next)
        token_list_push(out, symbols[at].id);
}

void bpe_scratch_free(struct bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
}

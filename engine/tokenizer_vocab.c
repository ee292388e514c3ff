/* tokenizer_vocab.c - the contents of the tokens by id, and ids by content.
 *
 * All contents lie in one arena, so that loading 151 thousand tokens takes a handful of
 * allocations. The hash table (open addressing) is made once, when the number of tokens is known. A
 * slot is an id and, in the bits that are left, a part of the hash, so that a probe rarely has to
 * look at a content. Loading Qwen3's merges takes 450 thousand look-ups: small slots keep the table
 * in the cache.
 */
#include "engine/tokenizer_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_ID_BITS 21 /* of the id plus 1 */

static_assert(TOKENIZER_MAX_VOCAB < (size_t)1 << SLOT_ID_BITS, "every id fits into a slot");

/* Eight bytes at a time: contents are 7 bytes long on average. */
static uint32_t hash_bytes(const char *text, size_t n)
{
    uint64_t hash = n;
    while (n > 0) {
        uint64_t word = 0;
        size_t taken = MIN(n, sizeof(word));
        memcpy(&word, text, taken);
        hash = mix64(hash ^ word);
        text += taken;
        n -= taken;
    }
    return (uint32_t)hash;
}

const char *vocab_get(const struct vocab *v, int id, size_t *n)
{
    if (id < 0 || (size_t)id >= v->n_ids || v->tokens[id].start == TOKEN_ABSENT)
        return NULL;
    *n = v->tokens[id].len;
    return v->arena.data + v->tokens[id].start;
}

/* The tag is the upper bits of the hash; the lower ones choose the place in the table. */
static uint32_t make_slot(uint32_t hash, size_t id)
{
    return (hash >> SLOT_ID_BITS << SLOT_ID_BITS) | (uint32_t)(id + 1);
}

static int slot_id(uint32_t slot)
{
    return (int)(slot & ((1u << SLOT_ID_BITS) - 1)) - 1;
}

static bool has_content(const struct vocab *v, int id, const char *text, size_t n)
{
    size_t len;
    const char *content = vocab_get(v, id, &len);
    return content && len == n && memcmp(content, text, n) == 0;
}

/* The place of the slot that holds a content, or of the empty one where it belongs. */
static size_t find_slot(const struct vocab *v, const char *text, size_t n, uint32_t hash)
{
    size_t mask = v->n_slots - 1, at = hash & mask;
    for (; v->slots[at]; at = (at + 1) & mask) {
        uint32_t slot = v->slots[at];
        if ((slot ^ hash) >> SLOT_ID_BITS == 0 && has_content(v, slot_id(slot), text, n))
            break;
    }
    return at;
}

int vocab_find(const struct vocab *v, const char *text, size_t n)
{
    if (v->n_slots == 0)
        return -1;
    return slot_id(v->slots[find_slot(v, text, n, hash_bytes(text, n))]);
}

/* Makes room for an id; ids in between stand for nothing until they are set. */
static struct token *reach_id(struct vocab *v, int id)
{
    array_reserve(&v->tokens, &v->capacity, (size_t)id + 1, sizeof(*v->tokens));
    while (v->n_ids <= (size_t)id)
        v->tokens[v->n_ids++] = (struct token){.start = TOKEN_ABSENT};
    return &v->tokens[id];
}

int vocab_set(struct vocab *v, int id, const char *text, size_t n)
{
    size_t len;
    const char *content = vocab_get(v, id, &len);
    if (content && !has_content(v, id, text, n))
        return err_set(ERR_DATA, "id %d stands for both '%.*s' and '%.*s'", id,
                       (int)MIN(len, (size_t)100), content, (int)MIN(n, (size_t)100), text);
    if (!content) {
        struct token *token = reach_id(v, id);
        token->start = (uint32_t)v->arena.len;
        token->len = (uint32_t)n & TOKEN_MAX_LEN;
        str_append(&v->arena, text, n);
    }
    return 0;
}

static int read_entry(struct vocab *v, struct scan *s)
{
    size_t start = v->arena.len;
    int id;
    if (scan_string(s, &v->arena) < 0 || scan_expect(s, ':') < 0 ||
        scan_int(s, TOKENIZER_MAX_VOCAB, &id) < 0)
        return -1;
    struct token *token = reach_id(v, id);
    if (token->start != TOKEN_ABSENT)
        return scan_fail(s, "an id that another token has already");
    token->start = (uint32_t)start;
    token->len = (uint32_t)(v->arena.len - start) & TOKEN_MAX_LEN;
    return 0;
}

static int build_table(struct vocab *v, size_t n_tokens)
{
    v->n_slots = 16;
    while (v->n_slots * 2 < n_tokens * 3)
        v->n_slots *= 2;
    v->slots = xcalloc(v->n_slots, sizeof(*v->slots));
    for (size_t id = 0; id < v->n_ids; id++) {
        size_t n;
        const char *text = vocab_get(v, (int)id, &n);
        if (!text)
            continue;
        uint32_t hash = hash_bytes(text, n), *slot = &v->slots[find_slot(v, text, n, hash)];
        if (*slot)
            return err_set(ERR_DATA, "token '%.*s' has the ids %d and %zu",
                           (int)MIN(n, (size_t)100), text, slot_id(*slot), id);
        *slot = make_slot(hash, id);
    }
    return 0;
}

int vocab_load(struct vocab *v, struct scan *s)
{
    size_t n_tokens = 0;
    if (v->slots)
        return scan_fail(s, "a second vocabulary");
    if (scan_expect(s, '{') < 0)
        return -1;
    if (!scan_skip(s, '}')) {
        do {
            if (read_entry(v, s) < 0)
                return -1;
            n_tokens++;
        } while (scan_skip(s, ','));
        if (scan_expect(s, '}') < 0)
            return -1;
    }
    return build_table(v, n_tokens);
}

void vocab_free(struct vocab *v)
{
    str_free(&v->arena);
    free(v->tokens);
    free(v->slots);
}

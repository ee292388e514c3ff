/* tokenizer_added.c - finds added tokens in a text.
 *
 * Added tokens ("<|im_start|>") are found before the text is split into words: the leftmost, of
 * those that start at the same place the longest. The sorted list serves as a trie: the range of
 * tokens that share a prefix with the text is narrowed byte by byte.
 */
#include "engine/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

void added_push(struct added_set *set, const struct added_token *token, const char *text, size_t n)
{
    if (n == 0)
        return;
    array_reserve(&set->tokens, &set->capacity, set->n_tokens + 1, sizeof(*set->tokens));
    struct added_token *copy = &set->tokens[set->n_tokens];
    *copy = *token;
    copy->text = xstrndup(text, n);
    copy->n = n;
    copy->order = set->n_tokens++;
    set->starts[(unsigned char)text[0]] = true;
}

static int compare_text(const struct added_token *a, const struct added_token *b)
{
    int order = memcmp(a->text, b->text, MIN(a->n, b->n));
    return order != 0 ? order : (a->n > b->n) - (a->n < b->n);
}

static int compare_tokens(const void *a, const void *b)
{
    const struct added_token *left = a, *right = b;
    int order = compare_text(left, right);
    return order != 0 ? order : (left->order > right->order) - (left->order < right->order);
}

void added_sort(struct added_set *set)
{
    size_t kept = 0;
    if (set->n_tokens == 0)
        return;
    qsort(set->tokens, set->n_tokens, sizeof(*set->tokens), compare_tokens);
    for (size_t i = 1; i < set->n_tokens; i++) {
        if (compare_text(&set->tokens[kept], &set->tokens[i]) == 0)
            free(set->tokens[i].text);
        else
            set->tokens[++kept] = set->tokens[i];
    }
    set->n_tokens = kept + 1;
}

int added_find(const struct added_set *set, const struct vocab *v, const char *text, size_t n)
{
    for (size_t i = 0; i < set->n_tokens; i++) {
        size_t len;
        const char *content = vocab_get(v, set->tokens[i].id, &len);
        if (content && len == n && memcmp(content, text, n) == 0)
            return set->tokens[i].id;
    }
    return -1;
}

const char *added_text(const struct added_set *set, int id, size_t *n)
{
    for (size_t i = 0; i < set->n_tokens; i++) {
        if (set->tokens[i].id == id) {
            *n = set->tokens[i].n;
            return set->tokens[i].text;
        }
    }
    return NULL;
}

void added_free(struct added_set *set)
{
    for (size_t i = 0; i < set->n_tokens; i++)
        free(set->tokens[i].text);
    free(set->tokens);
}

/* The first of tokens[low .. high), which agree in their first `depth` bytes, whose next byte is
 * at least c. A token that has no next byte comes first. */
static size_t lower_bound(const struct added_set *set, size_t low, size_t high, size_t depth,
                          unsigned c)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct added_token *token = &set->tokens[middle];
        if (token->n <= depth || (unsigned char)token->text[depth] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that text[n] starts with, or NULL. */
static const struct added_token *longest_at(const struct added_set *set, const char *text, size_t n)
{
    const struct added_token *longest = NULL;
    size_t low = 0, high = set->n_tokens;
    if (n == 0 || !set->starts[(unsigned char)text[0]])
        return NULL;
    for (size_t depth = 0; depth < n && low < high; depth++) {
        unsigned c = (unsigned char)text[depth];
        low = lower_bound(set, low, high, depth, c);
        high = lower_bound(set, low, high, depth, c + 1);
        if (low < high && set->tokens[low].n == depth + 1)
            longest = &set->tokens[low];
    }
    return longest;
}

/* Start of the character that ends before text[at], at > 0. */
static size_t previous_char(const char *text, size_t at)
{
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

static bool word_before(const char *text, size_t at)
{
    size_t len;
    if (at == 0)
        return false;
    size_t start = previous_char(text, at);
    return text_is_word(text_next(text + start, at - start, &len));
}

static bool word_after(const char *text, size_t n, size_t at)
{
    size_t len;
    return at < n && text_is_word(text_next(text + at, n - at, &len));
}

static size_t skip_space_back(const char *text, size_t at)
{
    while (at > 0) {
        size_t len, start = previous_char(text, at);
        if (!text_is_space(text_next(text + start, at - start, &len)))
            break;
        at = start;
    }
    return at;
}

static size_t skip_space_on(const char *text, size_t n, size_t at)
{
    size_t len;
    while (at < n && text_is_space(text_next(text + at, n - at, &len)))
        at += len;
    return at;
}

bool added_next(const struct added_set *set, const char *text, size_t n, size_t *search,
                size_t *covered, struct added_piece *piece)
{
    for (size_t at = *search; at < n; at++) {
        const struct added_token *token = longest_at(set, text + at, n - at);
        if (!token)
            continue;
        size_t start = at, end = at + token->n;
        if (token->single_word && (word_before(text, start) || word_after(text, n, end))) {
            at = end - 1;
            continue;
        }
        *search = end;
        if (token->lstrip)
            start = MAX(skip_space_back(text, start), *covered);
        if (token->rstrip)
            end = skip_space_on(text, n, end);
        *covered = end;
        *piece = (struct added_piece){start, end - start, token->id};
        return true;
    }
    *search = n;
    return false;
}

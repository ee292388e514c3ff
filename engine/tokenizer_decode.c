/* tokenizer_decode.c - from ids back to text.
 *
 * Each token becomes bytes on its own, and the bytes of all tokens form one stream: characters that
 * are spread over several tokens come together there, and what is not UTF-8 becomes U+FFFD. This
 * makes decoding incremental: whole texts are decoded by the same code, token by token.
 *
 * The reference gives up on a whole run of byte tokens (<0xE4>...) when one of them is invalid;
 * here only the invalid bytes become U+FFFD, which needs no waiting for the end of the run.
 */
#include "engine/tokenizer_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- loading ---- */

static struct decode_step *add_step(struct decoder *z, enum decode_kind kind)
{
    assert(z->n_steps < TOKENIZER_MAX_STEPS);
    struct decode_step *step = &z->steps[z->n_steps++];
    *step = (struct decode_step){.kind = kind};
    return step;
}

static int load_replace(struct decoder *z, const json_t *component)
{
    const char *from, *to = "";
    bool regex;
    if (component_pattern(component, "decoder Replace", &from, &regex) < 0 ||
        component_text(component, "content", &to) < 0)
        return -1;
    if (regex)
        return component_unknown("decoder", "Replace with a Regex");
    struct decode_step *step = add_step(z, DECODE_REPLACE);
    step->from = xstrdup(from);
    step->to = xstrdup(to);
    return 0;
}

static int load_metaspace(struct decoder *z, const json_t *component)
{
    const char *replacement;
    enum prepend_scheme scheme;
    if (metaspace_load(component, &replacement, &scheme) < 0)
        return -1;
    struct decode_step *step = add_step(z, DECODE_METASPACE);
    step->from = xstrdup(replacement);
    step->drop_first = scheme != PREPEND_NEVER;
    return 0;
}

static int load_suffix(struct decoder *z, const json_t *component)
{
    const char *suffix = "</w>";
    if (component_text(component, "suffix", &suffix) < 0)
        return -1;
    add_step(z, DECODE_SUFFIX)->from = xstrdup(suffix);
    z->has_suffix = true;
    return 0;
}

/* Only the front of the whole text can be stripped while it streams. */
static int load_strip(struct decoder *z, const json_t *component)
{
    const char *content = "";
    int start, stop;
    if (component_text(component, "content", &content) < 0 ||
        component_int(component, "start", INT32_MAX, &start) < 0 ||
        component_int(component, "stop", INT32_MAX, &stop) < 0)
        return -1;
    if (stop > 0 || !z->fused || z->strip)
        return component_unknown("decoder", "Strip, other than once at the start of a fused text,");
    z->strip = xstrdup(content);
    z->strip_most = content[0] ? (size_t)start : 0;
    return 0;
}

static int load_token_step(struct decoder *z, const json_t *component, const char *type)
{
    if (strcmp(type, "Replace") == 0)
        return load_replace(z, component);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(z, component);
    if (strcmp(type, "BPEDecoder") == 0)
        return load_suffix(z, component);
    if (strcmp(type, "ByteFallback") == 0) {
        add_step(z, DECODE_BYTE_FALLBACK);
        z->per_byte = true;
        return 0;
    }
    if (strcmp(type, "ByteLevel") != 0)
        return component_unknown("decoder", type);
    add_step(z, DECODE_BYTE_LEVEL);
    z->fused = true;
    return 0;
}

static int load_part(void *target, const json_t *component, const char *type)
{
    struct decoder *z = target;
    if (strcmp(type, "Strip") == 0)
        return load_strip(z, component);
    if (strcmp(type, "Fuse") == 0) {
        z->fused = true;
        return 0;
    }
    if (z->fused)
        return err_set(ERR_DATA, "decoder: '%.100s' after the tokens are fused is not supported",
                       type);
    return load_token_step(z, component, type);
}

int decoder_load(struct decoder *z, const json_t *component)
{
    z->join_spaces = !component || json_is_null(component);
    return component_each(component, "decoder", "decoders", load_part, z);
}

void decoder_free(struct decoder *z)
{
    for (size_t i = 0; i < z->n_steps; i++) {
        free(z->steps[i].from);
        free(z->steps[i].to);
    }
    free(z->strip);
}

/* ---- one token ---- */

struct token_decoder {
    const struct tokenizer *t;
    bool skip_special;
    bool any; /* a token was decoded already            */
    int held; /* the token that may be the last, or -1  */
    size_t strip_left;
    struct str pending; /* bytes that are not a whole character yet */
    struct str token, spare;
};

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static void decode_byte_fallback(struct str *out, const struct str *token)
{
    const char *s = token->data;
    if (token->len == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' && hex_value(s[3]) >= 0 &&
        hex_value(s[4]) >= 0) {
        char byte = (char)(hex_value(s[3]) * 16 + hex_value(s[4]));
        str_append(out, &byte, 1);
    } else {
        str_append(out, s, token->len);
    }
}

/* A token with a character outside the alphabet (an added token) stands for itself. */
static void decode_byte_level(struct str *out, const struct str *token)
{
    size_t len;
    for (size_t at = 0; at < token->len; at += len) {
        int byte = char_to_byte(text_next(token->data + at, token->len - at, &len));
        if (byte < 0) {
            str_clear(out);
            str_append(out, token->data, token->len);
            return;
        }
        char c = (char)byte;
        str_append(out, &c, 1);
    }
}

static void apply_step(const struct decode_step *step, const struct str *token, struct str *out,
                       bool first, bool last)
{
    switch (step->kind) {
    case DECODE_REPLACE: text_replace(out, token->data, token->len, step->from, step->to); break;
    case DECODE_BYTE_FALLBACK: decode_byte_fallback(out, token); break;
    case DECODE_BYTE_LEVEL: decode_byte_level(out, token); break;
    case DECODE_METASPACE:
        text_replace(out, token->data, token->len, step->from,
                     first && step->drop_first ? "" : " ");
        break;
    case DECODE_SUFFIX:
        text_replace(out, token->data, token->len, step->from, last ? "" : " ");
        break;
    }
}

/* ---- the stream ---- */

/* Appends the first n pending bytes, which end with a whole character. */
static void emit(struct token_decoder *d, struct str *out, size_t n)
{
    const struct decoder *z = &d->t->decoder;
    size_t start = out->len;
    text_append_lossy(out, d->pending.data, n, z->per_byte);
    memmove(d->pending.data, d->pending.data + n, d->pending.len - n);
    d->pending.len -= n;
    if (out->len == start)
        return;
    size_t strip_len = z->strip ? strlen(z->strip) : 0, cut = start;
    while (d->strip_left > 0 && out->len - cut >= strip_len &&
           memcmp(out->data + cut, z->strip, strip_len) == 0) {
        cut += strip_len;
        d->strip_left--;
    }
    memmove(out->data + start, out->data + cut, out->len - cut + 1);
    out->len -= cut - start;
    if (out->len > start)
        d->strip_left = 0;
}

/* An added token that is searched in the normalised text also reads as it is written there. */
static const char *token_text(const struct tokenizer *t, int id, size_t *n)
{
    const char *text = NULL;
    if (t->vocab.tokens[id].normalized)
        text = added_text(&t->normalized_added, id, n);
    return text ? text : vocab_get(&t->vocab, id, n);
}

static void decode_token(struct token_decoder *d, struct str *out, int id, bool last)
{
    const struct decoder *z = &d->t->decoder;
    size_t n;
    const char *text = token_text(d->t, id, &n);
    str_clear(&d->token);
    str_append(&d->token, text, n);
    for (size_t i = 0; i < z->n_steps; i++) {
        str_clear(&d->spare);
        apply_step(&z->steps[i], &d->token, &d->spare, !d->any, last);
        struct str swap = d->token;
        d->token = d->spare;
        d->spare = swap;
    }
    if (z->join_spaces && d->any)
        str_append_c(&d->pending, " ");
    str_append(&d->pending, d->token.data, d->token.len);
    d->any = true;
    emit(d, out, utf8_complete_prefix(d->pending.data, d->pending.len));
}

static void start(struct token_decoder *d, const struct tokenizer *t, bool skip_special)
{
    *d = (struct token_decoder){
        .t = t, .skip_special = skip_special, .held = -1, .strip_left = t->decoder.strip_most};
}

static void finish(struct token_decoder *d)
{
    str_free(&d->pending);
    str_free(&d->token);
    str_free(&d->spare);
}

struct token_decoder *token_decoder_open(const struct tokenizer *t, bool skip_special)
{
    struct token_decoder *d = xmalloc(sizeof(*d));
    start(d, t, skip_special);
    return d;
}

void token_decoder_push(struct token_decoder *d, struct str *out, int id)
{
    size_t n;
    if (!vocab_get(&d->t->vocab, id, &n) || (d->skip_special && d->t->vocab.tokens[id].special))
        return;
    if (!d->t->decoder.has_suffix) {
        decode_token(d, out, id, false);
        return;
    }
    if (d->held >= 0)
        decode_token(d, out, d->held, false);
    d->held = id;
}

void token_decoder_flush(struct token_decoder *d, struct str *out)
{
    if (d->held >= 0)
        decode_token(d, out, d->held, true);
    d->held = -1;
    if (d->pending.len > 0)
        emit(d, out, d->pending.len);
}

void token_decoder_close(struct token_decoder *d)
{
    if (d)
        finish(d);
    free(d);
}

void tokenizer_decode(const struct tokenizer *t, struct str *out, const int *ids, size_t n,
                      bool skip_special)
{
    struct token_decoder d;
    start(&d, t, skip_special);
    for (size_t i = 0; i < n; i++)
        token_decoder_push(&d, out, ids[i]);
    token_decoder_flush(&d, out);
    finish(&d);
}

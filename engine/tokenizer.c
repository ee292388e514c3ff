/* tokenizer.c - see tokenizer.h; tokenizer_internal.h says which file does what. */
#include "engine/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

/* bos_token and eos_token are a string, or an object with the content of an added token. */
static int read_named_token(const struct tokenizer *t, const json_t *config, const char *key,
                            char **text, int *id)
{
    const json_t *member = json_object_get(config, key);
    if (json_is_object(member))
        member = json_object_get(member, "content");
    if (member && !json_is_null(member) && !json_is_string(member))
        return err_set(ERR_DATA, "%s: expected a token", key);
    if (json_is_string(member)) {
        *text = xstrdup(json_string_value(member));
        *id = tokenizer_find(t, *text);
    }
    return 0;
}

/* chat_template is a text, or a list of named ones of which "default" counts. */
static int read_chat_template(struct tokenizer *t, const json_t *config)
{
    const json_t *member = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(member); i++) {
        const json_t *item = json_array_get(member, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0) {
            member = json_object_get(item, "template");
            break;
        }
    }
    if (!member || json_is_null(member) || t->chat_template)
        return 0;
    if (!json_is_string(member))
        return err_set(ERR_DATA,
                       "chat_template: expected a text, or a list with one named default");
    t->chat_template = xstrdup(json_string_value(member));
    return 0;
}

/* Integers are read as reals: "no limit" is written as model_max_length 10^30. */
static json_t *parse_config(const char *path)
{
    json_error_t error;
    size_t n;
    char *text = file_read(path, &n);
    if (!text)
        return NULL;
    json_t *config = json_loadb(text, n, JSON_DECODE_INT_AS_REAL, &error);
    free(text);
    if (!config)
        err_set(ERR_DATA, "%s:%d:%d: not valid JSON: %s", path, error.line, error.column,
                error.text);
    return config;
}

static int read_config(struct tokenizer *t, const char *path)
{
    if (!file_exists(path))
        return 0;
    json_t *config = parse_config(path);
    if (!config)
        return -1;
    int result = read_named_token(t, config, "bos_token", &t->bos_text, &t->bos);
    if (result == 0)
        result = read_named_token(t, config, "eos_token", &t->eos_text, &t->eos);
    if (result == 0)
        result = read_chat_template(t, config);
    json_decref(config);
    return result < 0 ? err_prefix("%s", path) : 0;
}

/* The file chat_template.jinja is newer than the member of tokenizer_config.json and wins. */
static int read_template_file(struct tokenizer *t, const char *path)
{
    if (!file_exists(path))
        return 0;
    t->chat_template = file_read(path, NULL);
    return t->chat_template ? 0 : -1;
}

static int read_tokenizer_file(struct tokenizer *t, struct sha256 *hash, const char *path)
{
    size_t n;
    char *text = file_read(path, &n);
    if (!text)
        return -1;
    sha256_add(hash, text, n);
    int result = tokenizer_load(t, text, n);
    free(text);
    return result < 0 ? err_prefix("%s", path) : 0;
}

int tokenizer_open(struct tokenizer **out, const char *dir)
{
    struct tokenizer *t = xcalloc(1, sizeof(*t));
    struct sha256 *hash = sha256_open();
    char *path = path_join(dir, "tokenizer.json");
    char *config_path = path_join(dir, "tokenizer_config.json");
    char *template_path = path_join(dir, "chat_template.jinja");
    t->bos = t->eos = -1;
    int result = read_tokenizer_file(t, hash, path);
    if (result == 0)
        result = read_template_file(t, template_path);
    if (result == 0)
        result = read_config(t, config_path);
    sha256_add_text(hash, t->chat_template ? t->chat_template : "");
    sha256_final(hash, t->fingerprint);
    free(path);
    free(config_path);
    free(template_path);
    if (result < 0) {
        tokenizer_close(t);
        return -1;
    }
    *out = t;
    return 0;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    vocab_free(&t->vocab);
    bpe_free(&t->bpe);
    added_free(&t->raw_added);
    added_free(&t->normalized_added);
    normalizer_free(&t->normalizer);
    splitter_free(&t->splitter);
    decoder_free(&t->decoder);
    token_list_free(&t->prefix);
    token_list_free(&t->suffix);
    free(t->bos_text);
    free(t->eos_text);
    free(t->chat_template);
    free(t);
}

/* ---- lists of ids ---- */

void token_list_push(struct token_list *list, int id)
{
    array_reserve(&list->ids, &list->capacity, list->n + 1, sizeof(*list->ids));
    list->ids[list->n++] = id;
}

void token_list_free(struct token_list *list)
{
    free(list->ids);
    *list = (struct token_list){0};
}

static void push_list(struct token_list *out, const struct token_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        token_list_push(out, list->ids[i]);
}

/* ---- encoding ---- */

/* One call of tokenizer_encode. */
struct encoder {
    const struct tokenizer *t;
    struct token_list *out;
    struct words words, spare;
    struct bpe_scratch scratch;
};

/* Text with no added token in it; `first` says that it is the beginning of the whole text. */
static int encode_plain(struct encoder *e, const char *text, size_t n, bool first)
{
    str_clear(&e->words.text);
    str_append(&e->words.text, text, n);
    if (splitter_apply(&e->t->splitter, &e->words, &e->spare, first) < 0)
        return -1;
    for (size_t i = 0; i < e->words.n; i++) {
        const struct span *word = &e->words.spans[i];
        bpe_encode(&e->t->bpe, &e->scratch, e->out, e->words.text.data + word->start, word->len);
    }
    return 0;
}

typedef int (*section_encoder)(struct encoder *e, const char *text, size_t n, bool first);

/* Pushes the ids of the added tokens in text[n] and hands what lies between them to encode. */
static int encode_between(struct encoder *e, const struct added_set *set, const char *text,
                          size_t n, bool first, section_encoder encode)
{
    size_t search = 0, covered = 0, done = 0;
    struct added_piece piece;
    while (added_next(set, text, n, &search, &covered, &piece)) {
        if (done < piece.start && encode(e, text + done, piece.start - done, first && !done) < 0)
            return -1;
        token_list_push(e->out, piece.id);
        done = covered;
    }
    return done < n ? encode(e, text + done, n - done, first && !done) : 0;
}

static int encode_section(struct encoder *e, const char *text, size_t n, bool first)
{
    struct str normal = {0};
    str_append(&normal, text, n);
    normalizer_apply(&e->t->normalizer, &normal);
    int result =
        encode_between(e, &e->t->normalized_added, normal.data, normal.len, first, encode_plain);
    str_free(&normal);
    return result;
}

int tokenizer_encode(const struct tokenizer *t, struct token_list *out, const char *text,
                     size_t n_bytes, bool add_special)
{
    struct encoder e = {.t = t, .out = out};
    struct str valid = {0};
    size_t n_before = out->n;
    if (n_bytes > TOKENIZER_MAX_TEXT_BYTES)
        return err_set(ERR_DATA, "a text of %zu bytes is longer than the limit of %zu", n_bytes,
                       TOKENIZER_MAX_TEXT_BYTES);
    if (text_valid_prefix(text, n_bytes) < n_bytes) {
        text_append_lossy(&valid, text, n_bytes, false);
        text = valid.data;
        n_bytes = valid.len;
    }
    if (add_special)
        push_list(out, &t->prefix);
    int result = encode_between(&e, &t->raw_added, text, n_bytes, true, encode_section);
    if (result == 0 && add_special)
        push_list(out, &t->suffix);
    if (result < 0)
        out->n = n_before;
    words_free(&e.words);
    words_free(&e.spare);
    bpe_scratch_free(&e.scratch);
    str_free(&valid);
    return result;
}

/* ---- what it knows ---- */

int tokenizer_vocab_size(const struct tokenizer *t)
{
    return (int)t->vocab.n_ids;
}

int tokenizer_find(const struct tokenizer *t, const char *token)
{
    size_t n = strlen(token);
    int id = vocab_find(&t->vocab, token, n);
    if (id < 0)
        id = added_find(&t->raw_added, &t->vocab, token, n);
    return id >= 0 ? id : added_find(&t->normalized_added, &t->vocab, token, n);
}

int tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

const char *tokenizer_bos_text(const struct tokenizer *t)
{
    return t->bos_text ? t->bos_text : "";
}

const char *tokenizer_eos_text(const struct tokenizer *t)
{
    return t->eos_text ? t->eos_text : "";
}

const char *tokenizer_chat_template(const struct tokenizer *t)
{
    return t->chat_template;
}

const char *tokenizer_fingerprint(const struct tokenizer *t)
{
    return t->fingerprint;
}

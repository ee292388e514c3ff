/* synthetic.c - see synthetic.h. */
#include "runner/synthetic.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/lines.h"
#include "runner/mt19937.h"

#define CSV_MAX_COLUMNS 256

_Static_assert(sizeof(int) == 4 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "arrays of ids are hashed as they lie in memory, as 32-bit little-endian integers");

/* ---- checking what was written ---- */

/* The first node given below prompts.synthetic, for positions of errors about the whole. */
static const struct yaml_node *any_node(const struct config *c)
{
    for (size_t i = 0; i < config_n_keys(); i++)
        if (c->node[i] && strncmp(config_get_key(i)->path, "prompts.synthetic.", 18) == 0)
            return c->node[i];
    assert(!"checked only when a key of it is given");
    return NULL;
}

static bool is_length(const struct yaml_node *node)
{
    int64_t length;
    return yaml_get_integer(&length, node) && length >= 1 && length <= SYNTHETIC_MAX_LEN;
}

/* One length, or a list that is taken in turn. */
static int check_lengths(const struct yaml_node *node, const char *key)
{
    bool valid = node->kind == YAML_SEQUENCE ? node->n_items > 0 : is_length(node);
    for (size_t i = 0; valid && node->kind == YAML_SEQUENCE && i < node->n_items; i++)
        valid = is_length(node->item[i]);
    char found[128];
    if (valid)
        return 0;
    return yaml_err(node,
                    "prompts.synthetic.%s is %s; expected a length from 1 to %d or a list of "
                    "such lengths",
                    key, yaml_describe(found, sizeof(found), node), SYNTHETIC_MAX_LEN);
}

/* [low, high] with min <= low <= high <= max. */
static int read_range(int64_t *low, int64_t *high, const struct yaml_node *node, const char *key,
                      int64_t min, int64_t max)
{
    if (node->kind == YAML_SEQUENCE && node->n_items == 2 && yaml_get_integer(low, node->item[0]) &&
        yaml_get_integer(high, node->item[1]) && min <= *low && *low <= *high && *high <= max)
        return 0;
    return yaml_err(node, "prompts.synthetic.%s: expected [low, high] from %lld to %lld", key,
                    (long long)min, (long long)max);
}

static int check_len_key(const struct synthetic_spec *spec, const struct yaml_node *node,
                         const char *key)
{
    int64_t low, high;
    if (!node)
        return 0;
    if (spec->lengths == LENGTHS_UNIFORM)
        return read_range(&low, &high, node, key, 1, SYNTHETIC_MAX_LEN);
    return check_lengths(node, key);
}

static int check_trace(const struct config *c)
{
    const struct synthetic_spec *spec = c->synthetic;
    if (spec->file[0] == '\0' || spec->input_column[0] == '\0')
        return yaml_err(any_node(c), "prompts.synthetic with lengths: trace needs file (a CSV) and "
                                     "input_column");
    const struct yaml_node *extra = spec->input_len ? spec->input_len : spec->output_len;
    if (extra)
        return yaml_err(extra, "lengths: trace takes its lengths from the file; input_len and "
                               "output_len are for fixed and uniform");
    return 0;
}

static int check_drawn(const struct config *c)
{
    const struct synthetic_spec *spec = c->synthetic;
    if (spec->num_prompts == SETTING_AUTO || !spec->input_len)
        return yaml_err(any_node(c), "prompts.synthetic needs num_prompts and input_len, or "
                                     "lengths: trace");
    if (spec->file[0] || spec->input_column[0] || spec->output_column[0])
        return yaml_err(any_node(c), "prompts.synthetic: file, input_column and output_column are "
                                     "for lengths: trace");
    if (check_len_key(spec, spec->input_len, "input_len") != 0)
        return -1;
    return check_len_key(spec, spec->output_len, "output_len");
}

int synthetic_check(const struct config *c)
{
    const struct synthetic_spec *spec = c->synthetic;
    const char *sha256 = spec->expect.sha256;
    int64_t low, high;
    if (spec->token_ids &&
        read_range(&low, &high, spec->token_ids, "token_ids", 0, TOKENIZER_MAX_VOCAB - 1) != 0)
        return -1;
    if (sha256[0] &&
        (strlen(sha256) != SHA256_HEX_LEN || strspn(sha256, "0123456789abcdef") != SHA256_HEX_LEN))
        return yaml_err(any_node(c),
                        "prompts.synthetic.expect.sha256 is '%s'; expected %d "
                        "hexadecimal digits (lower case)",
                        sha256, SHA256_HEX_LEN);
    return spec->lengths == LENGTHS_TRACE ? check_trace(c) : check_drawn(c);
}

/* ---- drawing ---- */

struct drawing {
    const struct synthetic_spec *spec;
    struct mt19937 random;
    int64_t low_id, high_id;
    struct prompt *prompt;
    size_t n, capacity;
    int64_t n_tokens;
};

static struct prompt *push_prompt(struct drawing *d)
{
    array_reserve(&d->prompt, &d->capacity, d->n + 1, sizeof(struct prompt));
    d->prompt[d->n] = (struct prompt){0};
    return &d->prompt[d->n++];
}

static int check_total(int64_t n_tokens)
{
    if (n_tokens <= SYNTHETIC_MAX_TOKENS)
        return 0;
    return err_set(ERR_CONFIG, "prompts.synthetic: more than %lld tokens in all",
                   (long long)SYNTHETIC_MAX_TOKENS);
}

static int draw_ids(struct drawing *d, struct prompt *prompt, int length)
{
    d->n_tokens += length;
    if (check_total(d->n_tokens) != 0)
        return -1;
    prompt->n_ids = length;
    prompt->ids = xrealloc_array(NULL, (size_t)length, sizeof(int));
    for (int i = 0; i < length; i++)
        prompt->ids[i] = (int)mt19937_randint(&d->random, d->low_id, d->high_id);
    return 0;
}

/* Length i of one number or of a list that is taken in turn; 0 when there is none. */
static int length_at(const struct yaml_node *node, int64_t i)
{
    int64_t length = 0;
    if (node && node->kind == YAML_SEQUENCE)
        node = node->item[(size_t)i % node->n_items];
    if (node)
        yaml_get_integer(&length, node);
    return (int)length;
}

static int draw_fixed(struct drawing *d)
{
    int64_t n_tokens = 0;
    for (int64_t i = 0; i < d->spec->num_prompts; i++)
        n_tokens += length_at(d->spec->input_len, i);
    if (check_total(n_tokens) != 0)
        return -1;
    for (int64_t i = 0; i < d->spec->num_prompts; i++) {
        struct prompt *prompt = push_prompt(d);
        prompt->max_tokens = length_at(d->spec->output_len, i);
        if (draw_ids(d, prompt, length_at(d->spec->input_len, i)) != 0)
            return -1;
    }
    return 0;
}

static int draw_uniform(struct drawing *d)
{
    const struct synthetic_spec *spec = d->spec;
    int low = length_at(spec->input_len, 0), high = length_at(spec->input_len, 1);
    if (check_total(spec->num_prompts * low) != 0)
        return -1;
    for (int64_t i = 0; i < spec->num_prompts; i++)
        if (draw_ids(d, push_prompt(d), (int)mt19937_randint(&d->random, low, high)) != 0)
            return -1;
    if (!spec->output_len)
        return 0;
    low = length_at(spec->output_len, 0);
    high = length_at(spec->output_len, 1);
    for (size_t i = 0; i < d->n; i++)
        d->prompt[i].max_tokens = (int)mt19937_randint(&d->random, low, high);
    return 0;
}

/* ---- traces ---- */

/* Cuts a line of CSV (RFC 4180, no line breaks in fields) into its fields, in place. */
static size_t split_csv(char *line, char *field[CSV_MAX_COLUMNS])
{
    size_t n = 0;
    char *read = line;
    while (n < CSV_MAX_COLUMNS) {
        char *write = read;
        bool quoted = *read == '"';
        field[n++] = write;
        read += quoted;
        while (*read && (quoted || *read != ',')) {
            if (quoted && read[0] == '"' && read[1] != '"') {
                quoted = false;
                read++;
                continue;
            }
            read += quoted && read[0] == '"'; /* The first of a doubled quote. */
            *write++ = *read++;
        }
        bool last = *read == '\0';
        *write = '\0';
        if (last)
            break;
        read++;
    }
    return n;
}

static int find_column(size_t *out, char *const *field, size_t n, const char *name,
                       const char *path)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(field[i], name) == 0) {
            *out = i;
            return 0;
        }
    }
    struct str columns = {0};
    str_append_c(&columns, "");
    for (size_t i = 0; i < n; i++)
        str_appendf(&columns, "%s%s", i > 0 ? ", " : "", field[i]);
    int rc =
        err_set(ERR_DATA, "%s:1: no column '%s'; its columns are %s", path, name, columns.data);
    str_free(&columns);
    return rc;
}

struct trace_columns {
    size_t input, output;
    bool has_output;
};

static int read_columns(struct trace_columns *out, struct lines *lines,
                        const struct synthetic_spec *spec)
{
    char *field[CSV_MAX_COLUMNS];
    size_t n;
    char *line = lines_next(lines, &n);
    if (!line)
        return err_set(ERR_DATA, "%s: empty; expected a line of column names", spec->file);
    size_t n_fields = split_csv(line, field);
    if (find_column(&out->input, field, n_fields, spec->input_column, spec->file) != 0)
        return -1;
    out->has_output = spec->output_column[0] != '\0';
    if (!out->has_output)
        return 0;
    return find_column(&out->output, field, n_fields, spec->output_column, spec->file);
}

static bool read_length(int *out, char *const *field, size_t n_fields, size_t column)
{
    int64_t length;
    if (column >= n_fields || !parse_int64(&length, field[column]) || length < 1 ||
        length > SYNTHETIC_MAX_LEN)
        return false;
    *out = (int)length;
    return true;
}

static int draw_row(struct drawing *d, char *line, const struct trace_columns *columns, int number)
{
    char *field[CSV_MAX_COLUMNS];
    size_t n_fields = split_csv(line, field);
    struct prompt *prompt = push_prompt(d);
    int input, output = 0;
    if (!read_length(&input, field, n_fields, columns->input) ||
        (columns->has_output && !read_length(&output, field, n_fields, columns->output))) {
        prompt->error =
            xasprintf("%s:%d: expected lengths from 1 to %d in its columns %s %s", d->spec->file,
                      number, SYNTHETIC_MAX_LEN, d->spec->input_column, d->spec->output_column);
        return 0;
    }
    prompt->max_tokens = output;
    return draw_ids(d, prompt, input);
}

static int draw_trace(struct drawing *d)
{
    const struct synthetic_spec *spec = d->spec;
    int64_t max_rows = spec->num_prompts == SETTING_AUTO ? PROMPTS_MAX : spec->num_prompts;
    struct trace_columns columns = {0};
    struct lines lines;
    if (lines_init(&lines, spec->file) != 0)
        return -1;
    int rc = read_columns(&columns, &lines, spec);
    char *line;
    size_t n;
    while (rc == 0 && (int64_t)d->n < max_rows && (line = lines_next(&lines, &n)))
        if (n > 0)
            rc = draw_row(d, line, &columns, lines.number);
    lines_free(&lines);
    return rc;
}

/* ---- what must come out ---- */

static int check_sum(int64_t found, int64_t expected, const char *what)
{
    if (expected == SETTING_AUTO || found == expected)
        return 0;
    return err_set(ERR_DATA, "prompts.synthetic: %lld %s; expect says %lld", (long long)found, what,
                   (long long)expected);
}

static int check_expect(const struct drawing *d)
{
    const struct synthetic_spec *spec = d->spec;
    char sha256[SHA256_HEX_LEN + 1];
    struct sha256 *hash = sha256_open();
    int64_t n_output = 0;
    for (size_t i = 0; i < d->n; i++) {
        sha256_add(hash, d->prompt[i].ids, (size_t)d->prompt[i].n_ids * sizeof(int));
        n_output += d->prompt[i].max_tokens;
    }
    sha256_final(hash, sha256);
    if (check_sum(d->n_tokens, spec->expect.input_tokens, "input tokens") != 0 ||
        check_sum(n_output, spec->expect.output_tokens, "output tokens") != 0)
        return -1;
    if (spec->expect.sha256[0] && strcmp(spec->expect.sha256, sha256) != 0)
        return err_set(ERR_DATA, "prompts.synthetic: the ids have the SHA-256 %s; expect says %s",
                       sha256, spec->expect.sha256);
    return 0;
}

static int draw(struct drawing *d)
{
    const struct synthetic_spec *spec = d->spec;
    int rc = spec->lengths == LENGTHS_FIXED     ? draw_fixed(d)
             : spec->lengths == LENGTHS_UNIFORM ? draw_uniform(d)
                                                : draw_trace(d);
    return rc == 0 ? check_expect(d) : -1;
}

int synthetic_draw(struct prompt **out, int *n, const struct config *c, int vocab,
                   const char *model_name)
{
    const struct synthetic_spec *spec = c->synthetic;
    struct drawing d = {.spec = spec, .low_id = 0, .high_id = vocab - 1};
    if (spec->token_ids) {
        d.low_id = length_at(spec->token_ids, 0);
        d.high_id = length_at(spec->token_ids, 1);
    }
    if (d.high_id >= vocab)
        return yaml_err(spec->token_ids,
                        "prompts.synthetic.token_ids goes up to %lld; the vocabulary of %s has %d "
                        "ids",
                        (long long)d.high_id, model_name, vocab);
    mt19937_init(&d.random, (uint64_t)spec->seed);
    if (draw(&d) != 0) {
        for (size_t i = 0; i < d.n; i++) {
            free(d.prompt[i].ids);
            free(d.prompt[i].error);
        }
        free(d.prompt);
        return -1;
    }
    *out = d.prompt;
    *n = (int)d.n;
    return 0;
}

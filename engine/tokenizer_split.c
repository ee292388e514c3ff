/* tokenizer_split.c - pre-tokenisation: cuts a text into words, which are encoded apart.
 *
 * A pre-tokeniser is a list of steps; each maps a text and the words in it to another text and the
 * words in that. The regular expressions are those of the model's file, written for Oniguruma and
 * matched by PCRE2: translate_pattern sees to it that they mean the same.
 */
#include "engine/tokenizer_internal.h"

#include <assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define SPLIT_MATCH_LIMIT 20000000 /* steps of one match: half a second at most, then an error */

/* Oniguruma's ^ and $ match at every line. \C would cut characters in two. */
#define REGEX_OPTIONS (PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C)

/* GPT-2's pattern, which a ByteLevel pre-tokeniser applies unless use_regex is false. */
static const char byte_level_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- loading ---- */

static struct split_step *add_step(struct splitter *z, enum split_kind kind)
{
    assert(z->n_steps < TOKENIZER_MAX_STEPS);
    struct split_step *step = &z->steps[z->n_steps++];
    *step = (struct split_step){.kind = kind};
    return step;
}

static bool starts_with_one_of(const char *text, const char *const *prefixes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strncmp(text, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    }
    return false;
}

/* Appends what the escape at p means to PCRE2; returns its length, or 0 when it is not known to
 * mean the same in both. \s is the property White_Space in Oniguruma; PCRE2 counts U+180E as space
 * too, so that it is written out. */
static size_t translate_escape(struct str *out, const char *p, bool in_class)
{
    static const char spaces[] = "\\t-\\r \\x85\\xA0\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}"
                                 "\\x{202F}\\x{205F}\\x{3000}";
    size_t n = 2;
    if (p[1] == 's') {
        str_appendf(out, in_class ? "%s" : "[%s]", spaces);
        return n;
    }
    if (p[1] == 'S' && !in_class) {
        str_appendf(out, "[^%s]", spaces);
        return n;
    }
    if (p[1] == 'p' || p[1] == 'P') {
        const char *end = p[2] == '{' ? strchr(p, '}') : NULL;
        n = end ? (size_t)(end + 1 - p) : 0;
    } else if (p[1] == '\0' || (isalnum((unsigned char)p[1]) && !strchr("dDrntfx", p[1]))) {
        n = 0;
    }
    str_append(out, p, n);
    return n;
}

/* Oniguruma's and PCRE2's languages agree in what the patterns in use are made of. What the two
 * read differently, or may, is refused. */
static int translate_pattern(struct str *out, const char *pattern)
{
    static const char *const groups[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    static const char *const doubtful[] = {"(?", "(*", "}+"};
    bool in_class = false;
    for (const char *p = pattern; *p;) {
        size_t n = 1;
        if (*p == '\\')
            n = translate_escape(out, p, in_class);
        else if (in_class ? *p == '[' || strncmp(p, "&&", 2) == 0
                          : starts_with_one_of(p, doubtful, ARRAY_LEN(doubtful)) &&
                                !starts_with_one_of(p, groups, ARRAY_LEN(groups)))
            n = 0;
        else
            str_append(out, p, 1);
        if (n == 0)
            return err_set(ERR_DATA, "pre_tokenizer: pattern '%.200s': '%.3s' is not supported",
                           pattern, p);
        if (*p == '[' || *p == ']')
            in_class = *p == '[';
        p += n;
    }
    return 0;
}

/* JIT compilation may be missing on this machine: matching then interprets the pattern. */
static int add_pattern(struct splitter *z, const char *pattern, bool regex,
                       enum split_behavior behavior, bool invert)
{
    struct str text = {0};
    int error;
    PCRE2_SIZE offset;
    if (!regex)
        str_append_c(&text, pattern);
    else if (translate_pattern(&text, pattern) < 0) {
        str_free(&text);
        return -1;
    }
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)text.data, text.len,
                      PCRE2_UTF | (regex ? REGEX_OPTIONS : PCRE2_LITERAL), &error, &offset, NULL);
    str_free(&text);
    if (!code) {
        PCRE2_UCHAR message[128];
        pcre2_get_error_message(error, message, sizeof(message));
        return err_set(ERR_DATA, "pre_tokenizer: pattern '%.100s': %s", pattern, (char *)message);
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    struct split_step *step = add_step(z, SPLIT_PATTERN);
    step->code = code;
    step->behavior = behavior;
    step->invert = invert;
    return 0;
}

static int load_split(struct splitter *z, const json_t *component)
{
    static const char *const names[] = {
        [BEHAVIOR_REMOVED] = "Removed",
        [BEHAVIOR_ISOLATED] = "Isolated",
        [BEHAVIOR_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [BEHAVIOR_MERGED_WITH_NEXT] = "MergedWithNext",
        [BEHAVIOR_CONTIGUOUS] = "Contiguous",
    };
    const char *pattern, *behavior = "";
    bool regex, invert = false;
    if (component_pattern(component, "pre_tokenizer Split", &pattern, &regex) < 0 ||
        component_text(component, "behavior", &behavior) < 0 ||
        component_bool(component, "invert", &invert) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(behavior, names[i]) == 0)
            return add_pattern(z, pattern, regex, (enum split_behavior)i, invert);
    }
    return err_set(ERR_DATA, "pre_tokenizer Split: unknown behavior '%.100s'", behavior);
}

static int load_digits(struct splitter *z, const json_t *component)
{
    bool individual = false;
    if (component_bool(component, "individual_digits", &individual) < 0)
        return -1;
    return add_pattern(z, "\\p{N}", true, individual ? BEHAVIOR_ISOLATED : BEHAVIOR_CONTIGUOUS,
                       false);
}

static int load_byte_level(struct splitter *z, const json_t *component)
{
    bool prefix_space = true, use_regex = true;
    if (component_bool(component, "add_prefix_space", &prefix_space) < 0 ||
        component_bool(component, "use_regex", &use_regex) < 0)
        return -1;
    if (prefix_space)
        add_step(z, SPLIT_PREFIX_SPACE);
    if (use_regex && add_pattern(z, byte_level_pattern, true, BEHAVIOR_ISOLATED, false) < 0)
        return -1;
    add_step(z, SPLIT_BYTES);
    return 0;
}

int metaspace_load(const json_t *component, const char **replacement, enum prepend_scheme *scheme)
{
    const char *name = NULL;
    bool prefix_space = true;
    *replacement = "\u2581";
    if (component_text(component, "replacement", replacement) < 0 ||
        component_text(component, "prepend_scheme", &name) < 0 ||
        component_bool(component, "add_prefix_space", &prefix_space) < 0)
        return -1;
    if (!**replacement)
        return err_set(ERR_DATA, "Metaspace: an empty replacement");
    *scheme = prefix_space ? PREPEND_ALWAYS : PREPEND_NEVER;
    if (name && strcmp(name, "first") == 0)
        *scheme = PREPEND_FIRST;
    else if (name && strcmp(name, "never") == 0)
        *scheme = PREPEND_NEVER;
    else if (name && strcmp(name, "always") != 0)
        return err_set(ERR_DATA, "Metaspace: unknown prepend_scheme '%.100s'", name);
    return 0;
}

static int load_metaspace(struct splitter *z, const json_t *component)
{
    bool cut = true;
    struct split_step step = {.kind = SPLIT_METASPACE};
    const char *replacement;
    if (metaspace_load(component, &replacement, &step.scheme) < 0 ||
        component_bool(component, "split", &cut) < 0)
        return -1;
    step.replacement = xstrdup(replacement);
    *add_step(z, SPLIT_METASPACE) = step;
    return cut ? add_pattern(z, replacement, false, BEHAVIOR_MERGED_WITH_NEXT, false) : 0;
}

static int load_part(void *target, const json_t *component, const char *type)
{
    struct splitter *z = target;
    if (strcmp(type, "Split") == 0)
        return load_split(z, component);
    if (strcmp(type, "Digits") == 0)
        return load_digits(z, component);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(z, component);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(z, component);
    return component_unknown("pre_tokenizer", type);
}

int splitter_load(struct splitter *z, const json_t *component)
{
    z->limits = pcre2_match_context_create(NULL);
    if (!z->limits)
        die("out of memory for a regular expression");
    pcre2_set_match_limit(z->limits, SPLIT_MATCH_LIMIT);
    return component_each(component, "pre_tokenizer", "pretokenizers", load_part, z);
}

void splitter_free(struct splitter *z)
{
    for (size_t i = 0; i < z->n_steps; i++) {
        pcre2_code_free(z->steps[i].code);
        free(z->steps[i].replacement);
    }
    pcre2_match_context_free(z->limits);
}

/* ---- words ---- */

void words_free(struct words *w)
{
    str_free(&w->text);
    free(w->spans);
}

static void push_span(struct words *w, size_t start, size_t len)
{
    if (len == 0)
        return;
    array_reserve(&w->spans, &w->capacity, w->n + 1, sizeof(*w->spans));
    w->spans[w->n++] = (struct span){start, len};
}

/* The word that was appended to out->text since `start`. */
static void push_tail(struct words *out, size_t start)
{
    push_span(out, start, out->text.len - start);
}

/* ---- cutting at a pattern ---- */

/* Takes the pieces of one word in order, matches and what lies between them. */
struct cutter {
    struct words *out;
    const struct split_step *step;
    size_t first; /* index in out->spans of the word's first piece */
    bool has_previous, previous_match;
};

static void extend_last(struct cutter *c, size_t start, size_t len)
{
    if (c->out->n > c->first)
        c->out->spans[c->out->n - 1].len += len;
    else
        push_span(c->out, start, len);
}

/* Takes the next piece; pieces of no length say nothing. */
static void cut_piece(struct cutter *c, size_t start, size_t len, bool is_match)
{
    if (len == 0)
        return;
    is_match = is_match != c->step->invert;
    bool same = c->has_previous && is_match == c->previous_match;
    switch (c->step->behavior) {
    case BEHAVIOR_ISOLATED: push_span(c->out, start, len); break;
    case BEHAVIOR_REMOVED:
        if (!is_match)
            push_span(c->out, start, len);
        break;
    case BEHAVIOR_CONTIGUOUS:
        if (same)
            extend_last(c, start, len);
        else
            push_span(c->out, start, len);
        break;
    case BEHAVIOR_MERGED_WITH_PREVIOUS:
        if (is_match && !same)
            extend_last(c, start, len);
        else
            push_span(c->out, start, len);
        break;
    case BEHAVIOR_MERGED_WITH_NEXT:
        /* A match starts a word; what follows it, unless it is a match too, belongs to it. */
        if (!is_match && c->has_previous && c->previous_match)
            extend_last(c, start, len);
        else
            push_span(c->out, start, len);
        break;
    }
    c->has_previous = true;
    c->previous_match = is_match;
}

/* The next match in text[n] from `at` on: 1, 0 when there is none, -1 with ERR_DATA. A JIT program
 * that runs out of its stack is interpreted instead. */
static int match_next(const struct splitter *z, const struct split_step *step,
                      pcre2_match_data *match, const char *text, size_t n, size_t at)
{
    int result =
        pcre2_match(step->code, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK, match, z->limits);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
        result = pcre2_match(step->code, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                             match, z->limits);
    if (result >= 0)
        return 1;
    if (result == PCRE2_ERROR_NOMATCH)
        return 0;
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(result, message, sizeof(message));
    return err_set(ERR_DATA, "the tokenizer's pattern gives up on a text of %zu bytes: %s", n,
                   (char *)message);
}

static int cut_word(const struct splitter *z, const struct split_step *step,
                    pcre2_match_data *match, struct words *out, struct span word)
{
    struct cutter cutter = {.out = out, .step = step, .first = out->n};
    const char *text = out->text.data + word.start;
    const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(match);
    size_t covered = 0, at = 0, len;
    int found = 0;
    while (at <= word.len && (found = match_next(z, step, match, text, word.len, at)) > 0) {
        if (bounds[0] < covered || bounds[1] < bounds[0])
            return err_set(ERR_DATA, "the tokenizer's pattern matches backwards");
        cut_piece(&cutter, word.start + covered, bounds[0] - covered, false);
        cut_piece(&cutter, word.start + bounds[0], bounds[1] - bounds[0], true);
        at = covered = bounds[1];
        if (bounds[0] == bounds[1]) { /* An empty match: look for the next one a character on. */
            len = 1;
            if (at < word.len)
                text_next(text + at, word.len - at, &len);
            at += len;
        }
    }
    cut_piece(&cutter, word.start + covered, word.len - covered, false);
    return found < 0 ? -1 : 0;
}

static int apply_pattern(const struct splitter *z, const struct split_step *step,
                         const struct words *in, struct words *out)
{
    int result = 0;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match)
        die("out of memory for a regular expression");
    str_append(&out->text, in->text.data, in->text.len);
    for (size_t i = 0; i < in->n && result == 0; i++)
        result = cut_word(z, step, match, out, in->spans[i]);
    pcre2_match_data_free(match);
    return result;
}

/* ---- steps that write a new text ---- */

uint32_t byte_to_char(unsigned char byte)
{
    if ((byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE)
        return byte;
    /* The other 68 bytes, in order, are the characters from U+0100 on. */
    if (byte <= 0x20)
        return 0x100u + byte;
    return byte <= 0xA0 ? 0x100u + 33 + (byte - 0x7Fu) : 0x100u + 67;
}

int char_to_byte(uint32_t c)
{
    if (c < 0x100)
        return byte_to_char((unsigned char)c) == c ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100);
    if (c <= 0x142)
        return (int)(c - 0x121 + 0x7F);
    return c == 0x143 ? 0xAD : -1;
}

static void append_bytes(struct str *out, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        text_append_char(out, byte_to_char((unsigned char)text[i]));
}

static void append_metaspace(const struct split_step *step, struct str *out, const char *text,
                             size_t n, bool first)
{
    size_t len = strlen(step->replacement);
    bool has_one = n > 0 && (text[0] == ' ' || (n >= len && !memcmp(text, step->replacement, len)));
    if (!has_one && (step->scheme == PREPEND_ALWAYS || (step->scheme == PREPEND_FIRST && first)))
        str_append_c(out, step->replacement);
    text_replace(out, text, n, " ", step->replacement);
}

static void rewrite(const struct split_step *step, const struct words *in, struct words *out,
                    bool first)
{
    for (size_t i = 0; i < in->n; i++) {
        const char *text = in->text.data + in->spans[i].start;
        size_t n = in->spans[i].len, start = out->text.len;
        if (step->kind == SPLIT_BYTES) {
            append_bytes(&out->text, text, n);
        } else if (step->kind == SPLIT_METASPACE) {
            append_metaspace(step, &out->text, text, n, first && i == 0);
        } else {
            if (text[0] != ' ')
                str_append_c(&out->text, " ");
            str_append(&out->text, text, n);
        }
        push_tail(out, start);
    }
}

int splitter_apply(const struct splitter *z, struct words *words, struct words *spare, bool first)
{
    words->n = 0;
    push_span(words, 0, words->text.len);
    for (size_t i = 0; i < z->n_steps; i++) {
        const struct split_step *step = &z->steps[i];
        str_clear(&spare->text);
        spare->n = 0;
        if (step->kind != SPLIT_PATTERN)
            rewrite(step, words, spare, first);
        else if (apply_pattern(z, step, words, spare) < 0)
            return -1;
        struct words swap = *words;
        *words = *spare;
        *spare = swap;
    }
    return 0;
}

/* chat_template.c - see chat_template.h.
 *
 * To teach quire another template of a format that chat.c renders: compare the rendering with the
 * template's own output on several conversations, then add the hash that QUIRE_LOG=debug shows when
 * the template is rejected.
 */
#include "engine/chat_template.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* ---- pieces ---- */

enum piece_kind {
    PIECE_TEXT = 't',    /* between tags                            */
    PIECE_OPEN = '<',    /* "{{" or "{%": the second character      */
    PIECE_CLOSE = '>',   /* "}}" or "%}": the first character       */
    PIECE_STRING = 's',  /* a string literal, its escapes resolved  */
    PIECE_NAME = 'n',    /* a name, a keyword or a number           */
    PIECE_SIGN = 'o',    /* one character of anything else          */
    PIECE_DEFAULT = 'd', /* the default system prompt, its words taken out */
    PIECE_DEFAULT_TURN = 'D',
};

struct piece {
    enum piece_kind kind;
    size_t start, len; /* in text */
};

struct pieces {
    struct str text; /* of all pieces, in order */
    struct piece *list;
    size_t n, capacity;
};

static void push_piece(struct pieces *p, enum piece_kind kind, const char *text, size_t n)
{
    array_reserve(&p->list, &p->capacity, p->n + 1, sizeof(*p->list));
    p->list[p->n++] = (struct piece){kind, p->text.len, n};
    str_append(&p->text, text, n);
}

static const char *piece_text(const struct pieces *p, size_t at)
{
    return p->text.data + p->list[at].start;
}

static bool is_kind(const struct pieces *p, size_t at, enum piece_kind kind)
{
    return at < p->n && p->list[at].kind == kind;
}

/* A sign, or the delimiter of a tag, out of a set of characters. */
static bool is_one_of(const struct pieces *p, size_t at, enum piece_kind kind, const char *set)
{
    return is_kind(p, at, kind) && strchr(set, *piece_text(p, at));
}

static void pieces_free(struct pieces *p)
{
    str_free(&p->text);
    free(p->list);
}

/* ---- reading a template ---- */

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_name_char(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

/* Reads the string literal at s; returns the position behind it. A backslash before another
 * character than these stays, as in Python. */
static const char *read_string(struct pieces *p, const char *s)
{
    static const char names[] = "ntr\\'\"", values[] = "\n\t\r\\'\"";
    struct str text = {0};
    char quote = *s++;
    while (*s && *s != quote) {
        const char *name = s[0] == '\\' && s[1] ? strchr(names, s[1]) : NULL;
        str_append(&text, name ? &values[name - names] : s, 1);
        s += name ? 2 : 1;
    }
    push_piece(p, PIECE_STRING, text.data, text.len);
    str_free(&text);
    return *s ? s + 1 : s;
}

static const char *read_word(struct pieces *p, const char *s)
{
    size_t n = 0;
    if (*s == '\'' || *s == '"')
        return read_string(p, s);
    while (is_name_char(s[n]))
        n++;
    if (n > 0) {
        push_piece(p, PIECE_NAME, s, n);
        return s + n;
    }
    if (!is_space(*s))
        push_piece(p, PIECE_SIGN, s, 1);
    return s + 1;
}

/* Reads a tag up to the "}}" or "%}" that ends it; *sign is the '-' or '+' before that, or 0. */
static const char *read_tag(struct pieces *p, const char *s, char *sign)
{
    const char end[] = {s[1] == '{' ? '}' : '%', '}', '\0'};
    push_piece(p, PIECE_OPEN, s + 1, 1);
    s += s[2] == '-' || s[2] == '+' ? 3 : 2;
    while (*s && strncmp(s, end, 2) != 0) {
        bool is_sign = (*s == '-' || *s == '+') && strncmp(s + 1, end, 2) == 0;
        *sign = is_sign ? *s : 0;
        s = is_sign ? s + 1 : read_word(p, s);
    }
    if (!*s)
        return s;
    push_piece(p, PIECE_CLOSE, end, 1);
    return s + 2;
}

static const char *skip_comment(const char *s, char *sign)
{
    const char *end = strstr(s + 2, "#}");
    *sign = end && (end[-1] == '-' || end[-1] == '+') ? end[-1] : 0;
    return end ? end + 2 : s + strlen(s);
}

/* Jinja's rules of white space, with trim_blocks and lstrip_blocks as Transformers sets them.
 * Behind a tag: a '-' drops all of it; {% %} and {# #} drop one line break. */
static const char *skip_after_tag(const char *s, char sign, bool is_output, bool *at_line_start)
{
    const char *from = s;
    if (sign == '-') {
        while (is_space(*s))
            s++;
    } else if (sign != '+' && !is_output && *s == '\n') {
        s++;
    }
    *at_line_start = s > from && s[-1] == '\n';
    return s;
}

/* Before a tag: a '-' drops all of it; {% and {# drop what stands before them on their line when
 * that is nothing else. Returns the new end of the text that starts at from. */
static const char *trim_before_tag(const char *from, const char *tag, bool at_line_start)
{
    const char *to = tag;
    while (to > from && is_space(to[-1]) && (tag[2] == '-' || to[-1] != '\n'))
        to--;
    if (tag[2] == '-')
        return to;
    bool alone = to > from ? to[-1] == '\n' : at_line_start;
    return alone && tag[1] != '{' && tag[2] != '+' ? to : tag;
}

static void read_template(struct pieces *p, const char *s)
{
    bool at_line_start = true;
    while (*s) {
        const char *tag = s;
        while (*tag && !(tag[0] == '{' && tag[1] && strchr("{%#", tag[1])))
            tag++;
        const char *to = *tag ? trim_before_tag(s, tag, at_line_start) : tag;
        if (to > s)
            push_piece(p, PIECE_TEXT, s, (size_t)(to - s));
        if (!*tag)
            return;
        char sign = 0;
        s = tag[1] == '#' ? skip_comment(tag, &sign) : read_tag(p, tag, &sign);
        s = skip_after_tag(s, sign, tag[1] == '{', &at_line_start);
    }
}

/* ---- one spelling ---- */

static bool is_identifier(const struct pieces *p, size_t at)
{
    const char *text = piece_text(p, at);
    for (size_t i = 0; i < p->list[at].len; i++) {
        if (!is_name_char(text[i]) || (i == 0 && isdigit((unsigned char)text[i])))
            return false;
    }
    return p->list[at].len > 0;
}

/* x['name'], which is x.name: whether the pieces from `at` are ['name'] behind a value. */
static bool is_subscript(const struct pieces *p, size_t at)
{
    return at > 0 && (is_kind(p, at - 1, PIECE_NAME) || is_one_of(p, at - 1, PIECE_SIGN, "])")) &&
           is_one_of(p, at, PIECE_SIGN, "[") && is_kind(p, at + 1, PIECE_STRING) &&
           is_one_of(p, at + 2, PIECE_SIGN, "]") && is_identifier(p, at + 1);
}

/* 'a' + 'b', which is 'ab' unless an operator that binds tighter stands next to it: whether the
 * string at `at` of `in` can be appended to the end of `out`. */
static bool is_joined(const struct pieces *out, const struct pieces *in, size_t at)
{
    return out->n >= 3 && is_kind(in, at, PIECE_STRING) &&
           !is_one_of(in, at + 1, PIECE_SIGN, "|.[*%") &&
           is_one_of(out, out->n - 1, PIECE_SIGN, "+") && is_kind(out, out->n - 2, PIECE_STRING) &&
           (is_one_of(out, out->n - 3, PIECE_OPEN, "{") ||
            is_one_of(out, out->n - 3, PIECE_SIGN, "+(="));
}

static void normalize_spelling(struct pieces *out, const struct pieces *in)
{
    for (size_t at = 0; at < in->n; at++) {
        if (is_subscript(in, at)) {
            push_piece(out, PIECE_SIGN, ".", 1);
            push_piece(out, PIECE_NAME, piece_text(in, at + 1), in->list[at + 1].len);
            at += 2;
        } else if (is_joined(out, in, at)) {
            out->n--; /* The plus sign. */
            out->text.len--;
            out->list[out->n - 1].len += in->list[at].len;
            str_append(&out->text, piece_text(in, at), in->list[at].len);
        } else {
            push_piece(out, in->list[at].kind, piece_text(in, at), in->list[at].len);
        }
    }
}

/* ---- the default system prompt ---- */

static const char turn_start[] = "<|im_start|>system\n", turn_end[] = "<|im_end|>\n";

/* A string with a whole system turn in it; *prompt is what it says. */
static bool is_system_turn(const struct pieces *p, size_t at, const char **prompt, size_t *n)
{
    const char *text = piece_text(p, at);
    const size_t start_len = strlen(turn_start), end_len = strlen(turn_end);
    size_t len = p->list[at].len;
    if (p->list[at].kind != PIECE_STRING || len <= start_len + end_len ||
        memcmp(text, turn_start, start_len) != 0 ||
        memcmp(text + len - end_len, turn_end, end_len) != 0)
        return false;
    *prompt = text + start_len;
    *n = len - start_len - end_len;
    return true;
}

/* Finds the system prompt that a ChatML template prints of its own accord, and takes its words out
 * of the pieces: as a turn, and alone, where a template adds tools to it. */
static void take_default(struct pieces *p, struct str *prompt)
{
    const char *text;
    size_t n;
    for (size_t i = 0; i < p->n && !prompt->data; i++) {
        if (is_system_turn(p, i, &text, &n))
            str_append(prompt, text, n);
    }
    for (size_t i = 0; i < p->n && prompt->data; i++) {
        bool turn = is_system_turn(p, i, &text, &n);
        if (!turn) {
            text = piece_text(p, i);
            n = p->list[i].len;
        }
        if (is_kind(p, i, PIECE_STRING) && n == prompt->len && !memcmp(text, prompt->data, n)) {
            p->list[i].kind = turn ? PIECE_DEFAULT_TURN : PIECE_DEFAULT;
            p->list[i].len = 0;
        }
    }
}

static void hash_pieces(const struct pieces *p, char hex[SHA256_HEX_LEN + 1])
{
    struct sha256 *hash = sha256_open();
    for (size_t i = 0; i < p->n; i++) {
        char kind = (char)p->list[i].kind;
        sha256_add(hash, &kind, 1);
        sha256_add(hash, piece_text(p, i), p->list[i].len);
        sha256_add(hash, "", 1);
    }
    sha256_final(hash, hex);
}

/* ---- the known templates ---- */

struct known_template {
    const char *hash;
    enum chat_format format;
    unsigned traits;
};

static const struct known_template known_templates[] = {
    /* ChatML with nothing else: OpenHermes, Yi, and what trl's setup_chat_format writes. */
    {"175126e6e64d5af844cde96ad99a276f666301529c455d8e7c15f0c767929e10", CHAT_CHATML, 0},
    /* The same, with add_generation_prompt false unless it is given. */
    {"51fadf3998fda45bb46b399e554e880a6a88321b8c49dde91e4da18b13ed5955", CHAT_CHATML, 0},
    /* The same after BOS: Hermes 2 and 3 on Llama-3. */
    {"f64806ba7a302172c741d520987d41fe7f6d214361139b9050d46b7a44743ae1", CHAT_CHATML,
     CHAT_PRINTS_BOS},
    /* Qwen2 and SmolLM 1 and 2: with a default system prompt. */
    {"c3befc7678d2ec98d92d88820413bf0ceb8c2561098350c3cd84653b9834c279", CHAT_CHATML, 0},
    /* Qwen2.5: the same and tools. */
    {"2d91bfb1ba012812c50bee6cc4b38a9c4027846f4aad1fba35fc1aa7ad5324c9", CHAT_CHATML, 0},
    /* Qwen3, both wordings of the template. */
    {"87d74f3914821375a0896a2240d8f47ef6b235f962d5f5371dbe2131e6f2f7bf", CHAT_CHATML, CHAT_THINKS},
    {"83d9ac30426c50dad00b458527b5c6bb7068cb2f4031ec2ef9d5effd280f6ca2", CHAT_CHATML, CHAT_THINKS},
    /* Llama-2: two spellings of "strip", and one with a branch for late system messages. */
    {"c2ed60fa84c0bff98207c32400ec78251a87bdebed193207c77f6171d6ab1829", CHAT_LLAMA2, 0},
    {"fe4dd367869c023ac5083ff7aa10f264012d7dad599d2c3156477e904d3cc2b7", CHAT_LLAMA2, 0},
    {"5ff057e4204458b1c9533a49adaaba131b37e0d039455c7cacc6cca8ee8d877b", CHAT_LLAMA2, 0},
    /* Llama-3, first and second version. */
    {"96ef7103340376524d2d1b5d8f98768b3492c3e7c30e2bd8d08286b4cfa3123c", CHAT_LLAMA3,
     CHAT_PRINTS_BOS | CHAT_ALWAYS_OPENS},
    {"c513207f2c0f275ca2f9f42aa6d7b3a5db057f7d886a40d37a11e66c200d00dc", CHAT_LLAMA3,
     CHAT_PRINTS_BOS},
    /* Llama-3.1. */
    {"3f6d9313d89fb8969ea5bbf618ef2d6dd9aa67b07abce94672125a57168a1649", CHAT_LLAMA3,
     CHAT_PRINTS_BOS | CHAT_SYSTEM_HEADER},
    /* Phi-3-mini, Phi-3.5-mini, Phi-3-small. */
    {"3d27d88a6dddc367d62a86d3ff237998d1ebddd0cb5181b5ad0b226de9a07921", CHAT_PHI3,
     CHAT_EOS_UNLESS_OPEN},
    {"a666fb64b73d28efe3d9f362848a79d7ff746e98eed21fe19c98c0719bac1458", CHAT_PHI3,
     CHAT_EOS_UNLESS_OPEN | CHAT_SKIPS_EMPTY_SYSTEM},
    {"c9d05c9e4e15a3acdae6704bb3bfbe0fe0a77fc4b66100c625364b3b3a3fbfd4", CHAT_PHI3,
     CHAT_PRINTS_BOS | CHAT_EOS_UNLESS_OPEN},
};

bool chat_template_recognise(struct chat_template *out, const char *text)
{
    struct pieces raw = {0}, pieces = {0};
    char hash[SHA256_HEX_LEN + 1];
    *out = (struct chat_template){0};
    size_t n = strlen(text);
    if (n > CHAT_TEMPLATE_MAX_BYTES)
        return false;
    char *copy = xstrndup(text, n > 0 && text[n - 1] == '\n' ? n - 1 : n); /* as Jinja does */
    read_template(&raw, copy);
    free(copy);
    normalize_spelling(&pieces, &raw);
    take_default(&pieces, &out->default_system);
    hash_pieces(&pieces, hash);
    pieces_free(&raw);
    pieces_free(&pieces);
    for (size_t i = 0; i < ARRAY_LEN(known_templates); i++) {
        if (strcmp(known_templates[i].hash, hash) == 0) {
            out->format = known_templates[i].format;
            out->traits = known_templates[i].traits;
            return true;
        }
    }
    log_debug("unknown chat template %s", hash);
    return false;
}

void chat_template_free(struct chat_template *t)
{
    str_free(&t->default_system);
}

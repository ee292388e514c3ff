/* config_slurm.c - the section slurm: what would otherwise only come to light in sbatch's answer,
 * or in a job that ends at once.
 */
#include "runner/config_internal.h"

#include <ctype.h>
#include <string.h>

static const struct yaml_node *given_node(const struct config *c, const char *key)
{
    return c->node[config_find_key(key)];
}

/* ---- texts ---- */

/* A text becomes part of one line of the script. */
static int check_line(const struct yaml_node *node, const char *what)
{
    for (const char *p = node->text; *p; p++)
        if (iscntrl((unsigned char)*p))
            return yaml_err(node, "%s has a line break or another control character", what);
    return 0;
}

static int check_lines(const struct config *c)
{
    static const char *const keys[] = {"experiment", "slurm.partition", "slurm.account",
                                       "slurm.qos", "slurm.constraint"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const struct yaml_node *node = given_node(c, keys[i]);
        if (node && check_line(node, keys[i]) != 0)
            return -1;
    }
    return 0;
}

static int check_list(const struct yaml_node *list, const char *key, bool are_options)
{
    char found[128];
    if (!list)
        return 0;
    if (list->kind != YAML_SEQUENCE)
        return yaml_err(list, "%s is %s; expected a list of texts", key,
                        yaml_describe(found, sizeof(found), list));
    for (size_t i = 0; i < list->n_items; i++) {
        const struct yaml_node *item = list->item[i];
        if (item->kind != YAML_SCALAR || yaml_is_null(item) || item->text[0] == '\0')
            return yaml_err(item, "an item of %s is %s; expected a text", key,
                            yaml_describe(found, sizeof(found), item));
        if (check_line(item, key) != 0)
            return -1;
        if (are_options && item->text[0] != '-')
            return yaml_err(item,
                            "an item of %s is '%s'; expected an option of sbatch, as in "
                            "--mail-type=END",
                            key, item->text);
    }
    return 0;
}

/* ---- time and memory ---- */

#define MAX_TIME_PARTS 4
#define SIGNAL_EARLY_S 60 /* sbatch(1), --signal: so much earlier than asked for it may come */

/* sbatch(1): minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes,
 * days-hours:minutes:seconds. */
static bool parse_time(int64_t *seconds, const char *text)
{
    int64_t part[MAX_TIME_PARTS] = {0}; /* days, hours, minutes, seconds */
    const char *dash = strchr(text, '-');
    int n_colons = 0;
    for (const char *p = text; *p; p++)
        n_colons += *p == ':';
    int first = dash ? 0 : n_colons == 2 ? 1 : 2;
    int n = n_colons + 1 + (dash != NULL);
    if (n_colons > 2 || first + n > MAX_TIME_PARTS)
        return false;
    for (int i = first; i < first + n; i++) {
        size_t digits = strspn(text, "0123456789");
        char number[16];
        if (digits == 0 || digits >= sizeof(number))
            return false;
        memcpy(number, text, digits);
        number[digits] = '\0';
        text += digits;
        bool is_last = i == first + n - 1;
        if (!parse_int64(&part[i], number) || *text != (is_last ? '\0' : i == 0 ? '-' : ':'))
            return false;
        text += !is_last;
    }
    *seconds = ((part[0] * 24 + part[1]) * 60 + part[2]) * 60 + part[3];
    return true;
}

static int check_time(const struct config *c)
{
    const struct yaml_node *node = given_node(c, "slurm.time");
    int64_t seconds;
    if (c->slurm.time[0] == '\0' || strcmp(c->slurm.time, "UNLIMITED") == 0)
        return 0;
    if (!parse_time(&seconds, c->slurm.time) || seconds == 0)
        return yaml_err(node,
                        "slurm.time is '%s'; expected minutes, HH:MM:SS, D-HH, D-HH:MM:SS or "
                        "UNLIMITED",
                        c->slurm.time);
    const struct yaml_node *signal = given_node(c, "slurm.signal_seconds");
    if (c->slurm.signal_seconds > 0 && c->slurm.signal_seconds + SIGNAL_EARLY_S >= seconds)
        return yaml_err(signal ? signal : node,
                        "slurm.signal_seconds is %lld in a job of %lld s, and Slurm may signal a "
                        "minute early: it would stop as soon as it starts",
                        (long long)c->slurm.signal_seconds, (long long)seconds);
    return 0;
}

static int check_mem(const struct config *c)
{
    const char *mem = c->slurm.mem;
    size_t digits = strspn(mem, "0123456789");
    const char *unit = mem + digits;
    bool is_size = digits > 0 && (*unit == '\0' || (strchr("KMGT", *unit) && unit[1] == '\0'));
    if (mem[0] == '\0' || is_size)
        return 0;
    return yaml_err(given_node(c, "slurm.mem"),
                    "slurm.mem is '%s'; expected a number with K, M (as without), G or T, as in "
                    "64G",
                    mem);
}

static int check_array(const struct config *c)
{
    if (c->slurm.array <= CONFIG_MAX_ARRAY)
        return 0;
    return yaml_err(given_node(c, "slurm.array"),
                    "slurm.array is %lld; expected at most %d: an index is a worker that takes a "
                    "share of the samples, not one task, so that more tasks need no more of them",
                    (long long)c->slurm.array, CONFIG_MAX_ARRAY);
}

int config_check_slurm(const struct config *c)
{
    if (check_lines(c) != 0 || check_list(c->slurm.modules, "slurm.modules", false) != 0 ||
        check_list(c->slurm.extra, "slurm.extra", true) != 0)
        return -1;
    if (check_time(c) != 0 || check_mem(c) != 0)
        return -1;
    return check_array(c);
}

/* prompts.h - the prompts of a task as token ids.
 *
 * Sources: a list in the config, a text file (one prompt per line, blank lines left out), JSONL
 * with a field, chat messages, or synthetic token ids (fixed lengths, uniform lengths, lengths of a
 * trace CSV). prompts.offset and prompts.limit then take a part of them. Plain text is encoded with
 * what the tokenizer puts around it (BOS); a chat prompt has what its template prints.
 *
 * The uniform generator is Python's `random` (MT19937 seeded by init_by_array, randint by rejection
 * over getrandbits), so that workloads published as Python scripts are drawn exactly.
 */
#ifndef QUIRE_PROMPTS_H
#define QUIRE_PROMPTS_H

#include "runner/config.h"

#define PROMPTS_MAX 10000000

/* A warning; %s: the model. */
#define PROMPTS_NO_TEMPLATE                                                                        \
    "%s has no chat template: its prompts are the texts of the messages alone"

struct prompt {
    char *text; /* what was asked (rendered chat included); NULL for synthetic token ids */
    int *ids;   /* [n_ids] */
    int n_ids;
    int max_tokens; /* output length of synthetic prompts; 0: the task's sampling.max_tokens */
    char *error;    /* this prompt cannot be used (NULL: it can); it becomes a failed sample  */
};

struct prompt_set {
    struct prompt *prompt;
    int n;
    char source[512];                     /* "prompts/gsm8k.jsonl (question, chat)" for the store */
    char fingerprint[SHA256_HEX_LEN + 1]; /* of all ids, texts and lengths                        */
    bool no_template;                     /* messages for a model that has no chat template       */
};

/* Reads and tokenises the prompts for these settings. tokenizer may be NULL: then only token id
 * lists and synthetic prompts work (ERR_CONFIG says so and names model.tokenizer). vocab (> 0)
 * bounds token ids. model_name is for messages. A bad prompt is no error of the set: it is a prompt
 * with `error`. ERR_DATA: a file that cannot be read, a chat template that is not known, synthetic
 * prompts that are not those that prompts.synthetic.expect names. */
int prompt_set_load(struct prompt_set **out, const struct config *c, const struct settings *s,
                    const struct tokenizer *tokenizer, int vocab, const char *model_name);
void prompt_set_free(struct prompt_set *set);

/* Sums over the set; longest may be NULL. */
int64_t prompt_set_tokens(const struct prompt_set *set, int *longest);

#endif

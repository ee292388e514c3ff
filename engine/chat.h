/* chat.h - turns chat messages into the prompt text that a model was trained on.
 *
 * A model's Jinja chat template is recognised as a whole (chat_template.h), and what it prints is
 * rendered by plain C. A template that is not recognised is an error that names it: a prompt in the
 * wrong format would give wrong results that look right.
 */
#ifndef QUIRE_CHAT_H
#define QUIRE_CHAT_H

#include "engine/util.h"

#define CHAT_MAX_MESSAGES 4096

enum chat_format {
    CHAT_PLAIN,  /* no template: the messages' contents, joined by newlines   */
    CHAT_CHATML, /* Qwen, SmolLM: <|im_start|>role\n ... <|im_end|>\n         */
    CHAT_LLAMA2, /* [INST] <<SYS>> ... [/INST]                                */
    CHAT_LLAMA3, /* <|start_header_id|>role<|end_header_id|>\n\n ... <|eot_id|> */
    CHAT_PHI3,   /* <|user|>\n ... <|end|>\n<|assistant|>\n                   */
    CHAT_N_FORMATS,
};

struct chat_message {
    const char *role;    /* "system", "user" or "assistant" */
    const char *content; /* UTF-8                           */
};

/* A format's name ("chatml", ...), for logs and configuration. */
const char *chat_format_name(enum chat_format format);

/* Recognises a template's text (NULL: CHAT_PLAIN). ERR_DATA that quotes the template's beginning
 * and `origin` (the model's name) when it is none of the known formats. */
int chat_format_detect(enum chat_format *out, const char *template_text, const char *origin);

/* Everything that the rendering depends on. */
struct chat_options {
    enum chat_format format;
    const char
        *template_text;    /* for details in which templates of one format differ; may be NULL */
    const char *bos, *eos; /* contents of the special tokens; "" when there is none            */
    bool add_generation_prompt; /* end with the opening of the assistant's turn */
};

/* Appends the rendered prompt to out. The text already contains BOS where the template prints it:
 * encode it with add_special = false, but CHAT_PLAIN, which is not from a template, with true.
 * ERR_DATA for an unknown role or an order of roles that the format refuses. */
int chat_render(struct str *out, const struct chat_options *options,
                const struct chat_message *messages, size_t n_messages);

#endif

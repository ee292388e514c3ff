/* chat_template.h - recognises the Jinja chat templates whose output chat.c can render.
 *
 * A template is a program, and two that look much alike may print different prompts. It is
 * therefore recognised as a whole: its tokens, without comments and the white space that Jinja
 * drops, in one spelling of quotes, subscripts and joined strings, are hashed and looked up. The
 * one thing that may vary is ChatML's default system prompt, which is read off.
 */
#ifndef QUIRE_CHAT_TEMPLATE_H
#define QUIRE_CHAT_TEMPLATE_H

#include "engine/chat.h"

#define CHAT_TEMPLATE_MAX_BYTES ((size_t)1 << 18)

/* What templates of one format do differently. */
enum chat_trait {
    CHAT_PRINTS_BOS = 1 << 0,         /* BOS before the first message                            */
    CHAT_THINKS = 1 << 1,             /* Qwen3: thoughts of earlier answers are left out         */
    CHAT_SYSTEM_HEADER = 1 << 2,      /* Llama-3.1: a system turn with dates, always             */
    CHAT_ALWAYS_OPENS = 1 << 3,       /* opens the assistant's turn even when not asked to       */
    CHAT_EOS_UNLESS_OPEN = 1 << 4,    /* EOS at the end when the assistant's turn is not opened  */
    CHAT_SKIPS_EMPTY_SYSTEM = 1 << 5, /* a system message with no content gives nothing          */
};

struct chat_template {
    enum chat_format format;
    unsigned traits;           /* of enum chat_trait                                     */
    struct str default_system; /* for conversations without one; data is NULL: none      */
};

/* True and *out filled in when text is a known template; free with chat_template_free either way.
 */
bool chat_template_recognise(struct chat_template *out, const char *text);
void chat_template_free(struct chat_template *t);

#endif

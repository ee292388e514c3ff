/* config_prompts.c - the shape of prompts that are written in the experiment file itself. */
#include <string.h>

#include "runner/config_internal.h"

static int check_list_item(const struct yaml_node *item)
{
    char found[128];
    int64_t id;
    if (item->kind == YAML_MAPPING || yaml_is_null(item) ||
        (item->kind == YAML_SEQUENCE && item->n_items == 0))
        return yaml_err(item,
                        "a prompt is %s; expected a text or a list of token ids (prompts.messages "
                        "takes conversations)",
                        item->kind == YAML_SEQUENCE ? "an empty list"
                                                    : yaml_describe(found, sizeof(found), item));
    for (size_t i = 0; i < item->n_items; i++)
        if (!yaml_get_integer(&id, item->item[i]) || id < 0 || id >= (int64_t)TOKENIZER_MAX_VOCAB)
            return yaml_err(item->item[i], "%s is no token id",
                            yaml_describe(found, sizeof(found), item->item[i]));
    return 0;
}

static int check_role(const struct yaml_node *role)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    char found[128];
    for (size_t i = 0; role->kind == YAML_SCALAR && i < ARRAY_LEN(roles); i++)
        if (strcmp(role->text, roles[i]) == 0)
            return 0;
    return yaml_err(role, "role is %s; expected one of system, user, assistant",
                    yaml_describe(found, sizeof(found), role));
}

static int check_message(const struct yaml_node *message)
{
    char found[128];
    if (message->kind != YAML_MAPPING)
        return yaml_err(message, "a message is %s; expected {role: ..., content: ...}",
                        yaml_describe(found, sizeof(found), message));
    for (size_t i = 0; i < message->n_items; i++) {
        const char *key = message->key[i]->text;
        if (strcmp(key, "role") != 0 && strcmp(key, "content") != 0)
            return yaml_err(message->key[i],
                            "key '%s' of a message is not known; expected role and content", key);
    }
    const struct yaml_node *role = yaml_find(message, "role");
    const struct yaml_node *content = yaml_find(message, "content");
    if (!role || !content)
        return yaml_err(message, "a message has no %s", role ? "content" : "role");
    if (content->kind != YAML_SCALAR || yaml_is_null(content))
        return yaml_err(content, "content is %s; expected a text",
                        yaml_describe(found, sizeof(found), content));
    return check_role(role);
}

static int check_conversation(const struct yaml_node *conversation)
{
    char found[128];
    if (conversation->kind != YAML_SEQUENCE || conversation->n_items == 0)
        return yaml_err(conversation, "a conversation is %s; expected a list of messages",
                        conversation->kind == YAML_SEQUENCE
                            ? "empty"
                            : yaml_describe(found, sizeof(found), conversation));
    if (conversation->n_items > CHAT_MAX_MESSAGES)
        return yaml_err(conversation, "%zu messages; expected at most %d", conversation->n_items,
                        CHAT_MAX_MESSAGES);
    for (size_t i = 0; i < conversation->n_items; i++)
        if (check_message(conversation->item[i]) != 0)
            return -1;
    return 0;
}

static int check_items(const struct yaml_node *list, const char *key,
                       int (*check)(const struct yaml_node *))
{
    char found[128];
    if (!list)
        return 0;
    if (list->kind != YAML_SEQUENCE || list->n_items == 0)
        return yaml_err(list, "%s is %s; expected a list", key,
                        list->kind == YAML_SEQUENCE ? "empty"
                                                    : yaml_describe(found, sizeof(found), list));
    for (size_t i = 0; i < list->n_items; i++)
        if (check(list->item[i]) != 0)
            return -1;
    return 0;
}

int config_check_prompts(const struct config *c)
{
    if (check_items(c->list, "prompts.list", check_list_item) != 0)
        return -1;
    return check_items(c->messages, "prompts.messages", check_conversation);
}

/* generate.c - the `generate` command: one prompt, streamed. */
#include "runner/cli.h"
#include "runner/commands.h"
#include "runner/decision.h"
#include "runner/prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct stream {
    const struct tokenizer *tokenizer;
    struct token_decoder *decoder;
    struct str piece;
    struct completion result; /* ids are not kept */
};

struct choices {
    const char *model, *tokenizer, *dtype, *quantization, *prompt, *system, *device, *attention;
    bool chat, ignore_eos;
    int64_t max_tokens, top_k, seed, threads;
    double temperature, top_p, min_p;
};

static void on_token(void *user, int id)
{
    struct stream *s = user;
    str_clear(&s->piece);
    token_decoder_push(s->decoder, &s->piece, id);
    fwrite(s->piece.data ? s->piece.data : "", 1, s->piece.len, stdout);
    fflush(stdout);
}

static void on_finish(void *user, const struct completion *c)
{
    struct stream *s = user;
    str_clear(&s->piece);
    token_decoder_flush(s->decoder, &s->piece);
    fwrite(s->piece.data ? s->piece.data : "", 1, s->piece.len, stdout);
    printf("\n");
    fflush(stdout);
    s->result = *c;
    s->result.ids = NULL;
}

static int encode_prompt(struct token_list *ids, const struct choices *o, const struct tokenizer *t)
{
    if (!o->chat)
        return tokenizer_encode(t, ids, o->prompt, strlen(o->prompt), true);
    struct chat_options chat = {.template_text = tokenizer_chat_template(t),
                                .bos = tokenizer_bos_text(t),
                                .eos = tokenizer_eos_text(t),
                                .add_generation_prompt = true};
    struct chat_message message[2];
    size_t n = 0;
    if (o->system)
        message[n++] = (struct chat_message){"system", o->system};
    message[n++] = (struct chat_message){"user", o->prompt};
    struct str text = {0};
    int rc = chat_format_detect(&chat.format, chat.template_text, o->model);
    bool plain = chat.format == CHAT_PLAIN;
    if (rc == 0 && plain)
        log_warning(PROMPTS_NO_TEMPLATE, o->model);
    if (rc == 0)
        rc = chat_render(&text, &chat, message, n);
    if (rc == 0)
        rc = tokenizer_encode(t, ids, text.data, text.len, plain);
    str_free(&text);
    return rc;
}

static void log_speed(const struct completion *c)
{
    double decode_s = c->finished_s - c->first_token_s;
    log_info("%d prompt tokens; first token after %.0f ms; %d tokens (%s)", c->n_prompt,
             1e3 * (c->first_token_s - c->scheduled_s), c->n_ids, finish_reason_name(c->reason));
    if (c->n_ids > 1 && decode_s > 0)
        log_info("%.1f tokens/s", (c->n_ids - 1) / decode_s);
}

static int generate_text(struct model *model, const struct choices *o,
                         enum attention_kind attention, const struct token_list *ids)
{
    const struct model_info *info = model_get_info(model);
    int longest = MIN((int)ids->n + (int)o->max_tokens, info->max_position);
    struct engine *engine;
    struct engine_options options = {
        .fast = true, .attention = attention, .max_num_seqs = 1, .max_model_len = MAX(longest, 2)};
    if (engine_open(&engine, model, &options) != 0)
        return -1;
    struct stream stream = {.tokenizer = model_get_tokenizer(model)};
    stream.decoder = token_decoder_open(stream.tokenizer, true);
    struct request request = {.prompt = ids->ids,
                              .n_prompt = (int)ids->n,
                              .sampling = {.temperature = (float)o->temperature,
                                           .top_p = (float)o->top_p,
                                           .min_p = (float)o->min_p,
                                           .top_k = (int)o->top_k,
                                           .max_tokens = (int)o->max_tokens,
                                           .ignore_eos = o->ignore_eos},
                              .seed = (uint64_t)o->seed,
                              .on_token = on_token,
                              .on_finish = on_finish,
                              .user = &stream};
    int rc = engine_submit(engine, &request, NULL);
    while (rc == 0 && (rc = engine_step(engine)) > 0)
        rc = 0;
    if (rc == 0)
        log_speed(&stream.result);
    token_decoder_close(stream.decoder);
    str_free(&stream.piece);
    engine_close(engine);
    return rc;
}

/* The position of an option's value in the names of its enum. */
static int find_choice(int *out, const char *option, const char *value, const char *const *names,
                       size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(value, names[i]) == 0) {
            *out = (int)i;
            return 0;
        }
    }
    struct str valid = {0};
    for (size_t i = 0; i < n; i++)
        str_appendf(&valid, "%s%s", i ? ", " : "", names[i]);
    err_set(ERR_CONFIG, "--%s is '%s'; expected one of %s", option, value, valid.data);
    str_free(&valid);
    return -1;
}

/* Device and attention kernel by the ladder that `run` uses. */
static int choose_settings(struct settings *s, const struct choices *o)
{
    static const char *const devices[] = {"auto", "cpu", "cuda"};
    static const char *const kernels[] = {"auto", "flash", "memory_efficient", "eager"};
    *s = (struct settings){.engine = {.fast = FAST_ON}};
    static const char *const quantizations[] = {"none", "int8"};
    if (find_choice(&s->engine.device, "device", o->device, devices, ARRAY_LEN(devices)) != 0 ||
        find_choice(&s->model.quantization, "quantization", o->quantization, quantizations,
                    ARRAY_LEN(quantizations)) != 0)
        return -1;
    return find_choice(&s->engine.attention, "attention", o->attention, kernels,
                       ARRAY_LEN(kernels));
}

static int check_numbers(const struct choices *o)
{
    const struct {
        const char *name;
        double value, low, high;
    } number[] = {
        {"max-tokens", (double)o->max_tokens, 1, ENGINE_MAX_BATCHED_TOKENS},
        {"temperature", o->temperature, 0, 100},
        {"min-p", o->min_p, 0, 1},
        {"top-k", (double)o->top_k, 0, TOKENIZER_MAX_VOCAB},
        {"threads", (double)o->threads, 0, 1024},
    };
    for (size_t i = 0; i < ARRAY_LEN(number); i++)
        if (!(number[i].value >= number[i].low && number[i].value <= number[i].high))
            return err_set(ERR_CONFIG, "--%s is %.10g; expected %.10g to %.10g", number[i].name,
                           number[i].value, number[i].low, number[i].high);
    if (!(o->top_p > 0 && o->top_p <= 1)) /* for the engine, 0 means all tokens */
        return err_set(ERR_CONFIG, "--top-p is %g; expected more than 0, at most 1", o->top_p);
    return 0;
}

static int check_choices(const struct choices *o)
{
    if (!o->model)
        return err_set(ERR_CONFIG, "--model is missing: the directory of a Hugging Face model");
    if (o->system && !o->chat)
        return err_set(ERR_CONFIG, "--system needs --chat: a plain prompt has no system message");
    return check_numbers(o);
}

static int run_generate(const struct choices *o)
{
    static const struct decision_policy policy = {.allow_cpu = true};
    struct model_options options = {
        .path = o->model,
        .tokenizer = o->tokenizer,
        .dtype = o->dtype,
        .device_options = {.n_threads = (int)o->threads,
                           .isa = config_get_environment("QUIRE_CPU_ISA")},
        .weight_cache = config_get_environment("QUIRE_WEIGHT_CACHE")};
    struct settings settings;
    struct decision decision;
    if (check_choices(o) != 0 || choose_settings(&settings, o) != 0 ||
        decision_choose_device(&decision, &settings, &policy) != 0)
        return -1;
    options.device = decision.device;
    options.quantization = (enum quantization)settings.model.quantization;
    struct model *model;
    decision_choose_engine(&decision, &settings);
    decision_log_loading(&decision, o->model);
    while (model_open(&model, &options) != 0) {
        if (decision_use_cpu(&decision, &policy) != 0)
            return -1;
        options.device = decision.device;
    }
    struct token_list ids = {0};
    int rc = model_get_tokenizer(model)
                 ? encode_prompt(&ids, o, model_get_tokenizer(model))
                 : err_set(ERR_CONFIG, "%s has no tokenizer.json; name one with --tokenizer DIR",
                           o->model);
    if (rc == 0)
        rc = decision_choose_attention(&decision, &settings, &model_get_info(model)->device,
                                       &policy);
    if (rc == 0)
        rc = generate_text(model, o, decision.attention, &ids);
    token_list_free(&ids);
    model_close(model);
    return rc;
}

int command_generate(int argc, char **argv)
{
    struct choices o = {.prompt = "",
                        .max_tokens = 256,
                        .top_p = 1,
                        .quantization = "none",
                        .device = "auto",
                        .attention = "auto"};
    const struct cli_option options[] = {
        {"model", "DIR", "directory of a Hugging Face model", CLI_TEXT, &o.model},
        {"prompt", "TEXT", "what to continue or to answer (default: empty)", CLI_TEXT, &o.prompt},
        {"chat", NULL, "put the prompt into the model's chat format", CLI_FLAG, &o.chat},
        {"system", "TEXT", "system message, with --chat", CLI_TEXT, &o.system},
        {"max-tokens", "N", "longest answer in tokens (256)", CLI_INT, &o.max_tokens},
        {"temperature", "T", "0 takes the most probable token (default 0)", CLI_NUMBER,
         &o.temperature},
        {"top-p", "P", "keep the smallest set of tokens with this probability (1: all)", CLI_NUMBER,
         &o.top_p},
        {"top-k", "K", "keep the K most probable tokens (0: all)", CLI_INT, &o.top_k},
        {"min-p", "P", "keep tokens with at least P times the largest probability", CLI_NUMBER,
         &o.min_p},
        {"seed", "N", "random numbers (0)", CLI_INT, &o.seed},
        {"ignore-eos", NULL, "go on after the end of the text", CLI_FLAG, &o.ignore_eos},
        {"dtype", "NAME", "auto, bfloat16, float16, float32", CLI_TEXT, &o.dtype},
        {"quantization", "NAME", "none (default) or int8 (on a CPU)", CLI_TEXT, &o.quantization},
        {"device", "NAME", "auto (default), cpu or cuda", CLI_TEXT, &o.device},
        {"attention", "NAME", "auto (default), flash, memory_efficient or eager", CLI_TEXT,
         &o.attention},
        {"tokenizer", "DIR", "use another directory's tokenizer", CLI_TEXT, &o.tokenizer},
        {"threads", "N", "CPU threads (0: all)", CLI_INT, &o.threads},
    };
    const struct cli_command command = {
        .name = "generate",
        .arguments = "",
        .doc = "Answers one prompt and streams the text to standard output.",
        .option = options,
        .n_options = ARRAY_LEN(options),
    };
    enum cli_result parsed = cli_parse(&command, argc, argv, NULL);
    if (parsed != CLI_OK)
        return parsed == CLI_HELP ? 0 : ERR_CONFIG;
    char *model = o.model ? config_find_model(o.model) : NULL;
    o.model = model;
    int rc = run_generate(&o);
    free(model);
    return rc == 0 ? 0 : (int)err_get_kind();
}

/* generate.c - the embeddable engine in one page: answer one prompt and print the text as it comes.
 *
 *   cc -I. examples/generate.c build/libquire.a -rdynamic -fopenmp \
 *       -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm
 *   ./a.out configs/models/demo "12 plus 34 is"
 *
 * -rdynamic is for a GPU: quire_cuda.so, which is opened at run time, uses functions of libquire.a.
 * It is looked for beside the program, then in ../lib/quire of it.
 */
#include "engine/engine.h"

#include <stdio.h>
#include <string.h>

static void print(struct str *text)
{
    fwrite(text->data ? text->data : "", 1, text->len, stdout);
    fflush(stdout);
    str_free(text);
}

static void print_token(void *user, int id)
{
    struct str text = {0};
    token_decoder_push(user, &text, id);
    print(&text);
}

/* What was held back because it could have gone on. */
static void print_rest(void *user, const struct completion *completion)
{
    struct str text = {0};
    (void)completion;
    token_decoder_flush(user, &text);
    print(&text);
}

int main(int argc, char **argv)
{
    struct model *model = NULL;
    struct engine *engine = NULL;
    struct token_list prompt = {0};
    struct engine_options options = {.fast = true, .max_num_seqs = 1};
    struct request request = {
        .sampling = {.max_tokens = 64}, .on_token = print_token, .on_finish = print_rest};
    int status = 1;

    if (argc != 3) {
        fprintf(stderr, "usage: generate MODEL_DIRECTORY PROMPT\n");
        return 2;
    }
    if (model_open(&model, &(struct model_options){.path = argv[1]}) != 0 ||
        engine_open(&engine, model, &options) != 0)
        goto end;
    const struct tokenizer *tokenizer = model_get_tokenizer(model);
    if (!tokenizer) {
        err_set(ERR_CONFIG, "%s has no tokenizer", argv[1]);
        goto end;
    }
    if (tokenizer_encode(tokenizer, &prompt, argv[2], strlen(argv[2]), true) != 0)
        goto end;
    request.prompt = prompt.ids;
    request.n_prompt = (int)prompt.n;
    request.user = token_decoder_open(tokenizer, true);
    if (engine_submit(engine, &request, NULL) == 0)
        while ((status = engine_step(engine)) > 0) {
        }
end:
    if (status)
        fprintf(stderr, "generate: %s\n", err_get());
    printf("\n");
    token_decoder_close(request.user);
    token_list_free(&prompt);
    engine_close(engine);
    model_close(model);
    return status != 0;
}

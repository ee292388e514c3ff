/* fuzz_tokenizer.c - any bytes as a tokenizer.json: an error, or a tokenizer that encodes and
 * decodes; and any bytes as a text: ids that come back as the text.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -std=c17 -D_GNU_SOURCE -I. \
 *         tests/fuzz_tokenizer.c engine/tokenizer*.c engine/bpe.c engine/text.c engine/util.c \
 *         -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm -o build/fuzz_tokenizer
 *   build/fuzz_tokenizer -max_total_time=60 CORPUS    (a folder with a small tokenizer.json in it)
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Llama-2's stages with an alphabet of two letters: every other character is bytes. */
static struct tokenizer *open_plain(void)
{
    struct str json = {0};
    struct tokenizer *t = xcalloc(1, sizeof(*t));
    str_append_c(&json,
                 "{\"decoder\": {\"type\": \"ByteFallback\"}, \"model\": {\"byte_fallback\": "
                 "true, \"merges\": [\"a b\"], \"vocab\": {\"a\": 256, \"b\": 257, \"ab\": "
                 "258");
    for (int byte = 0; byte < 256; byte++)
        str_appendf(&json, ", \"<0x%02X>\": %d", byte, byte);
    str_append_c(&json, "}}}");
    if (tokenizer_load(t, json.data, json.len) != 0)
        abort();
    str_free(&json);
    return t;
}

static void check_text(const struct tokenizer *t, const char *text, size_t n, bool comes_back)
{
    struct token_list ids = {0};
    struct str whole = {0}, pieces = {0}, clean = {0};
    if (tokenizer_encode(t, &ids, text, n, true) == 0) {
        struct token_decoder *d = token_decoder_open(t, false);
        for (size_t i = 0; i < ids.n; i++)
            token_decoder_push(d, &pieces, ids.ids[i]);
        token_decoder_flush(d, &pieces);
        token_decoder_close(d);
        tokenizer_decode(t, &whole, ids.ids, ids.n, false);
        text_append_lossy(&clean, text, n, false);
        assert(whole.len == pieces.len &&
               (!whole.len || !memcmp(whole.data, pieces.data, whole.len)));
        assert(!comes_back || (whole.len == clean.len &&
                               (!whole.len || !memcmp(whole.data, clean.data, whole.len))));
    } else {
        assert(!comes_back && err_get_kind() == ERR_DATA);
    }
    token_list_free(&ids);
    str_free(&whole);
    str_free(&pieces);
    str_free(&clean);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char text[] = "a <s> ab\n'll 12 \u4e16\u2581e\u0301<tool>\xff";
    static struct tokenizer *plain;
    struct tokenizer *t = xcalloc(1, sizeof(*t));
    char *json = xstrndup((const char *)data, n);
    err_clear();
    if (!plain)
        plain = open_plain();
    check_text(plain, json, n, true);
    if (tokenizer_load(t, json, n) == 0)
        check_text(t, text, strlen(text), false);
    else
        assert(err_get_kind() == ERR_DATA);
    tokenizer_close(t);
    free(json);
    return 0;
}

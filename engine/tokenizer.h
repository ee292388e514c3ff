/* tokenizer.h - text to token ids and back, from a Hugging Face tokenizer.json.
 *
 * Two families: byte-level BPE (GPT-2, Qwen2/3, Llama-3, SmolLM: a regular expression splits the
 * text, bytes are the alphabet) and Llama-2-style BPE (normalisers Prepend/Replace, byte fallback).
 * A component this file does not know (another model type, normaliser, pre-tokeniser, decoder) is
 * an error that names it, never silently skipped.
 *
 * A struct tokenizer is immutable after loading: any number of threads may encode and decode with
 * it at once (scratch memory is per call).
 */
#ifndef QUIRE_TOKENIZER_H
#define QUIRE_TOKENIZER_H

#include "engine/util.h"

#define TOKENIZER_MAX_VOCAB      ((size_t)1 << 20)
#define TOKENIZER_MAX_TEXT_BYTES ((size_t)1 << 28)

struct tokenizer;

/* Loads dir/tokenizer.json, and the bos/eos/pad names and chat template of
 * dir/tokenizer_config.json when that file is there. ERR_DATA with file (and line, for broken JSON)
 * when the file is damaged or has a component that is not supported. */
int tokenizer_open(struct tokenizer **out, const char *dir);
void tokenizer_close(struct tokenizer *t);

/* A growing list of ids. Zero-initialise; free with token_list_free. */
struct token_list {
    int *ids;
    size_t n, capacity;
};
void token_list_push(struct token_list *list, int id);
void token_list_free(struct token_list *list);

/* Appends the ids of text[n_bytes] (UTF-8; an invalid byte is encoded as U+FFFD, as the reference
 * library's callers do) to out. add_special: also what the post-processor adds (BOS). Special
 * tokens written out in the text are recognised. ERR_DATA when the text is too long. */
int tokenizer_encode(const struct tokenizer *t, struct token_list *out, const char *text,
                     size_t n_bytes, bool add_special);

/* Appends the text of ids[n] to out; unknown ids give nothing. skip_special leaves special tokens
 * out. Bytes that are not valid UTF-8 become U+FFFD. */
void tokenizer_decode(const struct tokenizer *t, struct str *out, const int *ids, size_t n,
                      bool skip_special);

/* Incremental decoding for streaming: holds back bytes of an unfinished UTF-8 character. The
 * concatenation of all pieces and of the flush equals tokenizer_decode of all ids. */
struct token_decoder;
struct token_decoder *token_decoder_open(const struct tokenizer *t, bool skip_special);
/* Appends what can be printed after this id to out (often one piece, sometimes nothing). */
void token_decoder_push(struct token_decoder *d, struct str *out, int id);
void token_decoder_flush(struct token_decoder *d, struct str *out);
void token_decoder_close(struct token_decoder *d);

/* Number of ids: one past the largest id that stands for something. */
int tokenizer_vocab_size(const struct tokenizer *t);
/* The id of a token by its exact content, or -1. */
int tokenizer_find(const struct tokenizer *t, const char *token);
/* -1 when the tokenizer names none. */
int tokenizer_bos(const struct tokenizer *t);
int tokenizer_eos(const struct tokenizer *t);
/* The content of bos/eos ("" when there is none): chat templates print them. Borrowed. */
const char *tokenizer_bos_text(const struct tokenizer *t);
const char *tokenizer_eos_text(const struct tokenizer *t);
/* The chat template's text, from tokenizer_config.json or dir/chat_template.jinja; NULL when the
 * model has none. Borrowed. */
const char *tokenizer_chat_template(const struct tokenizer *t);
/* SHA-256 (hex) of tokenizer.json and the chat template: part of a model's fingerprint. Borrowed.
 */
const char *tokenizer_fingerprint(const struct tokenizer *t);

#endif

/* model.h - weights on a device and the one forward pass. Internal to the engine; the public
 * functions model_open, model_close and model_get_info are declared in engine.h.
 */
#ifndef QUIRE_MODEL_H
#define QUIRE_MODEL_H

#include "engine/arch.h"
#include "engine/engine.h"

struct model_layer {
    struct weight qkv;                        /* [(n_heads + 2 n_kv_heads) head_dim, hidden] */
    struct weight o;                          /* [hidden, n_heads head_dim]                  */
    struct weight gate_up;                    /* [2 ffn, hidden], gated                      */
    struct weight down;                       /* [hidden, ffn]                               */
    float *attn_gain;                         /* [hidden], before attention                  */
    float *mlp_gain;                          /* [hidden], before the MLP                    */
    float *q_gain, *k_gain;                   /* [head_dim], or NULL                        */
    float *qkv_bias;                          /* [qkv.n_out], or NULL                        */
    float *o_bias, *gate_up_bias, *down_bias; /* or NULL                  */
};

struct model {
    struct model_arch arch;
    struct model_info info;
    struct device *device;
    struct tokenizer *tokenizer; /* NULL: token ids only */
    struct weight_cache *cache;  /* of the matrices; NULL: none */
    struct model_layer *layer;   /* [n_layers]           */
    struct weight embed;         /* [vocab, hidden]      */
    struct weight lm_head;       /* [vocab, hidden]; empty when tied */
    float *final_gain;           /* [hidden]             */
    float *rope;                 /* [info.max_position, head_dim] */
    struct engine *fetching;     /* used the device's fetch slots last; NULL: none */
};

/* Activation memory for steps of up to max_tokens tokens and max_rows rows of logits. What an
 * operation reads from narrow it writes to wide, and back: two buffers are enough for all of a
 * layer. */
struct activations {
    void *residual;    /* [max_tokens, hidden]                                               */
    void *narrow;      /* [max_tokens, max(hidden, n_heads head_dim)]: norms, attention, MLP */
    void *wide;        /* [max_tokens, max(qkv width, ffn, hidden)]: the other projections   */
    void *last;        /* [max_rows, hidden]                                                 */
    void *last_normed; /* [max_rows, hidden]                                                 */
    float *logits;     /* [max_rows, vocab]                                                  */
};

int activations_init(struct activations *a, const struct model *m, int max_tokens, int max_rows);
void activations_free(struct activations *a, const struct model *m);
/* Of a model that is described or open: engine_plan needs it before there is a model. */
size_t activations_bytes(const struct model_info *info, int max_tokens, int max_rows);

/* Everything that one step of the forward pass reads besides the weights. */
struct forward_args {
    const struct batch *batch;
    const int *sampled;    /* [lanes]: what negative tokens of the batch refer to   */
    const int *logits_row; /* [n_rows] device memory: batch rows that need logits;  */
    int n_rows;            /* NULL: all of them do, and n_rows is n_tokens          */
    enum attention_kind attention;
    const struct kv_layer *kv; /* [n_layers] */
    int block_size;
    enum dtype kv_dtype;
};

/* Runs all layers over the batch, writes K and V into the cache and a->logits[0 .. n_rows). */
void model_forward(const struct model *m, struct activations *a, const struct forward_args *args);

#endif

/* arch.h - what a decoder-only transformer is made of, read from a Hugging Face config.json.
 *
 * An architecture is a declaration (this struct and the names of its tensors), not a forward pass.
 * configs/models/NAME.json files use the same keys as config.json. One key holds for every
 * architecture: attn_logit_softcapping, the cap of attention scores that Gemma 2 introduced.
 */
#ifndef QUIRE_ARCH_H
#define QUIRE_ARCH_H

#include "kernels/backend.h"

#define ARCH_MAX_LAYERS    512
#define ARCH_MAX_DIM       65536 /* hidden, ffn: bounds every size computed from a hostile file */
#define ARCH_MAX_HEAD_DIM  256
#define ARCH_MAX_VOCAB     (1 << 20)
#define ARCH_MAX_POSITIONS (1 << 22)
#define ARCH_MAX_EOS       16

enum rope_scaling_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

/* Frequencies of rotary position embedding. Sources: Su et al. 2021 (RoPE); Peng et al. 2023
 * (YaRN); Llama 3.1's reference code for `llama3`. */
struct rope_config {
    enum rope_scaling_kind kind;
    double theta;
    double factor;
    double low_freq_factor, high_freq_factor; /* llama3                                  */
    double beta_fast, beta_slow;              /* yarn                                    */
    double attention_factor;                  /* yarn; 0: 0.1 ln(factor) + 1             */
    double mscale, mscale_all_dim;            /* yarn; 0: not given                      */
    int original_max_position;                /* llama3, yarn                            */
    bool truncate;                            /* yarn: round the correction range        */
};

struct model_arch {
    char name[64]; /* "Qwen3ForCausalLM" */
    int n_layers, hidden, ffn;
    int n_heads, n_kv_heads, head_dim;
    int vocab;
    int max_position; /* max_position_embeddings; yarn: original * factor when that is more */
    float norm_eps;
    struct rope_config rope;
    int window;       /* sliding window in tokens; 0: none                         */
    int window_first; /* layers below this one attend to everything                */
    float softcap;    /* of attention scores: c tanh(s / c); 0: none               */
    bool tied_embeddings;
    bool qkv_bias, o_bias, mlp_bias;
    bool qk_norm;
    enum dtype dtype; /* of the checkpoint; DTYPE_N: config.json does not say */
    double init_std;  /* initializer_range: of random initialisation          */
    int bos;          /* -1: none */
    int eos[ARCH_MAX_EOS], n_eos;
};

/* Reads path/config.json and path/generation_config.json, or the file itself when path is a .json.
 * ERR_DATA with file, key, what was expected, and for an unknown architecture the supported ones.
 */
int arch_load(struct model_arch *out, const char *path);

/* Parameters of all matrices, norms and biases, tied embeddings counted once. */
size_t arch_n_params(const struct model_arch *arch);
/* Bytes of K and V per token over all layers. */
size_t arch_kv_bytes_per_token(const struct model_arch *arch, enum dtype kv_dtype);

/* The table that rope_cache reads: [n_positions, head_dim] f32, cosines then sines, computed in
 * double precision and already multiplied by the scaling's attention factor. The caller frees.
 * NULL with ERR_RESOURCE when there is no memory for it. */
float *arch_rope_table(const struct model_arch *arch, int n_positions);

#endif

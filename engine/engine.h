/* engine.h - the public C API: load a model once, generate for many requests at once.
 *
 *   struct model *model;   model_open(&model, &(struct model_options){.path =
 * "models/Qwen3-0.6B"}); struct engine *engine; engine_open(&engine, model, &options);
 *   engine_submit(engine, &request, &id);            // from any thread
 *   while (engine_step(engine) > 0) {}               // callbacks run inside engine_step
 *
 * Functions that can fail return 0 or -1 and leave the reason in err_get().
 *
 * Determinism: the tokens of a request are a function of its prompt ids, its sampling settings and
 * its seed (for one model, device kind, instruction set, dtype and attention kernel): bit for bit
 * the same whatever else runs beside it, however the prompt is cut into chunks, whether it was
 * preempted (and recomputed or swapped) or found in the prefix cache, and with the fast and the
 * standard engine.
 */
#ifndef QUIRE_ENGINE_H
#define QUIRE_ENGINE_H

#include "engine/chat.h"
#include "engine/tokenizer.h"
#include "engine/trace.h"
#include "engine/util.h"
#include "kernels/backend.h"

/* ---- model ---------------------------------------------------------------------------------- */

struct model_options {
    const char *path;      /* Hugging Face directory, or a .json architecture with random_init */
    const char *tokenizer; /* directory of another tokenizer; NULL: the model's own, if any    */
    const char *dtype;     /* "auto", "bfloat16", "float16", "float32"; NULL: auto             */
    enum quantization quantization; /* of all matrices, when they are loaded; INT8: CPU only   */
    bool random_init; /* no weights are read: values by seed                              */
    uint64_t init_seed;
    enum device_kind device;
    struct device_options device_options; /* threads and instruction set of a CPU               */
    const char *weight_cache; /* folder for packed weights of a CPU, which later starts map; NULL:
                                 none                                                           */
};

struct model_info {
    char arch[64]; /* "Qwen3ForCausalLM"                                               */
    char fingerprint[SHA256_HEX_LEN + 1]; /* of architecture, weights (or init seed), tokenizer   */
    enum dtype dtype; /* of the weights on the device; quantised ones: of the KV cache    */
    enum quantization quantization; /* of the weights on the device                           */
    enum dtype act_dtype; /* of activations on the device                                     */
    int n_layers, hidden, ffn, n_heads, n_kv_heads, head_dim, vocab;
    int max_position;   /* the longest sequence that the model was made for                 */
    int bos;            /* -1: none */
    int eos[16], n_eos; /* tokens that end a sequence */
    size_t n_params;
    size_t weight_bytes; /* on the device, RoPE table included; from model_describe without the
                            padding of the device's own layout                               */
    double load_s;       /* seconds that model_open took; 0 from model_describe              */
    struct device_info device;
};

struct model;

/* Loads weights and tokenizer onto the device. ERR_DATA: damaged or unsupported files;
 * ERR_RESOURCE: not enough memory (the message says how much was needed and was there). */
int model_open(struct model **out, const struct model_options *options);
void model_close(struct model *m);
/* Borrowed from the model. */
const struct model_info *model_get_info(const struct model *m);
/* NULL when the model has no tokenizer. Borrowed from the model. */
const struct tokenizer *model_get_tokenizer(const struct model *m);

/* What model_open would load, from the headers alone: no weights are read, no device memory taken.
 * tokenizer may be NULL when it is not wanted; the caller closes it (it may be NULL on success). */
int model_describe(struct model_info *out, struct tokenizer **tokenizer,
                   const struct model_options *options);

/* ---- engine --------------------------------------------------------------------------------- */

#define ENGINE_MAX_SEQS           4096
#define ENGINE_MAX_BATCHED_TOKENS (1 << 18)
#define ENGINE_MAX_STOP_IDS       16

enum scheduling_policy {
    SCHEDULING_FCFS,         /* in the order of submission                                       */
    SCHEDULING_PRIORITY,     /* smaller priority value first, then order of submission           */
    SCHEDULING_MEMORY_AWARE, /* smallest final KV need first; admits only what will fit to its end
                              */
    SCHEDULING_N,
};

const char *scheduling_policy_name(enum scheduling_policy policy); /* "fcfs", "priority", ... */

struct engine_options {
    bool fast; /* paged KV and continuous batching; false: static batches,
                  contiguous KV                                              */
    enum attention_kind attention;
    enum scheduling_policy policy;
    bool enforce_eager;         /* run every step as it is: decode steps are not recorded
                                   (CUDA graphs)                                              */
    bool async_scheduling;      /* prepare and enqueue a step while the one before it runs: stop
                                   tokens are seen one step later. For devices that compute beside
                                   the host; tokens are the same                              */
    bool prefix_caching;        /* fast engine only                                           */
    int block_size;             /* tokens per KV block: a multiple of 16; 0: 64               */
    int max_num_seqs;           /* sequences in one step; 0: 256                              */
    int max_num_batched_tokens; /* tokens in one step; 0: 8192, on a CPU 2048, and no fewer than
                                   max_num_seqs                                               */
    int max_model_len;          /* longest sequence, prompt and output; 0: the model's        */
    int n_kv_blocks;            /* 0: as many as memory_utilization allows and max_num_seqs
                                   sequences of max_model_len can use                         */
    double memory_utilization;  /* share of the device's free memory for the engine; 0: 0.9   */
    const char *kv_dtype;       /* "auto" or NULL (the model's), "bfloat16", "float16", "float32" */
    size_t swap_bytes;          /* host memory for the KV of preempted sequences; 0: none, they are
                                   recomputed; fast engine only                                */
    struct trace *trace;        /* of the steps; NULL: none. Must outlive the engine           */
};

/* Memory of an engine, planned before anything is taken. */
struct memory_plan {
    size_t weight_bytes;     /* taken by the model already                 */
    size_t activation_bytes; /* activations, logits, batch arrays          */
    size_t kv_bytes;         /* n_blocks blocks                            */
    size_t block_bytes;      /* one block over all layers                  */
    size_t host_kv_bytes;    /* n_host_blocks blocks in host memory        */
    size_t budget_bytes;     /* what memory_utilization allows for all     */
    int n_blocks, block_size;
    int n_host_blocks; /* 0 when every sequence fits to its end: nobody is preempted  */
    int max_model_len;
    int max_step_tokens; /* tokens in one step                                          */
    int max_concurrency; /* sequences of max_model_len that fit at once, <= max_num_seqs */
};

/* Plans without taking memory. ERR_RESOURCE when not even one sequence of max_model_len fits,
 * with the bytes needed and there; ERR_CONFIG for options out of range. */
int engine_plan(struct memory_plan *out, const struct model_info *model,
                const struct engine_options *options);

struct engine;

/* The fast engine fails here when its KV pool cannot be made; the caller may try again with
 * fast = false. The model must outlive the engine; several engines may share one model, one at a
 * time in a step. */
int engine_open(struct engine **out, struct model *model, const struct engine_options *options);
void engine_close(struct engine *e); /* unfinished requests are dropped without a callback */
const struct memory_plan *engine_get_plan(const struct engine *e);

struct sampling_params {
    float temperature; /* 0: greedy                                   */
    float top_p;       /* 0 or 1: off                                 */
    float min_p;       /* 0: off                                      */
    int top_k;         /* 0: off                                      */
    int max_tokens;    /* at least 1                                  */
    bool ignore_eos;
    int stop_ids[ENGINE_MAX_STOP_IDS], n_stop_ids; /* besides the model's eos */
};

enum finish_reason { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED };

const char *finish_reason_name(enum finish_reason reason); /* "stop", "length", "cancelled" */

/* What a request became. Pointers are valid during the callback only. */
struct completion {
    uint64_t id;
    const int *ids; /* [n_ids] generated tokens; a stop token is the last one */
    int n_ids;
    enum finish_reason reason;
    int n_prompt;
    int n_cached; /* prompt tokens found in the prefix cache           */
    int n_preemptions;
    double submitted_s, scheduled_s, first_token_s, finished_s; /* time_monotonic_s() */
};

typedef void (*token_callback)(void *user, int id);
typedef void (*finish_callback)(void *user, const struct completion *completion);

struct request {
    const int *prompt; /* [n_prompt] copied */
    int n_prompt;      /* at least 1        */
    struct sampling_params sampling;
    uint64_t seed;
    int priority;              /* SCHEDULING_PRIORITY: smaller is sooner             */
    token_callback on_token;   /* may be NULL; called in engine_step for each token  */
    finish_callback on_finish; /* may be NULL; called once, in engine_step          */
    void *user;
};

/* Queues a request; any thread. ERR_DATA when it can never run: an empty prompt, an id outside the
 * vocabulary, prompt longer than max_model_len - 1 (the message says both), a bad setting.
 * max_tokens is cut to what max_model_len leaves. *id may be NULL. */
int engine_submit(struct engine *e, const struct request *request, uint64_t *id);

/* One step of generation. 1: work was done; 0: nothing to do; -1: the device failed. One thread at
 * a time; callbacks may submit, cancel and read statistics, but not step. */
int engine_step(struct engine *e);

/* A thread that steps the engine whenever there is work; callbacks run on it. engine_stop waits for
 * the step in progress; what is unfinished then goes on with engine_step or another engine_start.
 * Neither is called from a callback. ERR_RUN: it runs already. */
int engine_start(struct engine *e);
void engine_stop(struct engine *e);

/* Ends a request at the next step with FINISH_CANCELLED; any thread. false: there is none of this
 * id that is unfinished. */
bool engine_cancel(struct engine *e, uint64_t id);

struct engine_stats {
    long n_steps;
    long n_finished, n_preemptions;
    long prompt_tokens;     /* computed in prefill (recomputation after preemption included) */
    long cached_tokens;     /* prompt tokens found in the prefix cache                       */
    long output_tokens;     /* sampled                                                       */
    double batch_seqs_mean; /* sequences per step                                            */
    int n_waiting, n_running;
    int kv_blocks, kv_used, kv_cached, kv_used_peak;     /* blocks: all, owned by sequences, kept
                                                            only by the prefix cache             */
    int kv_host_blocks, kv_host_used, kv_host_used_peak; /* blocks of swapped sequences      */
    long n_swapped_out, n_swapped_in; /* of n_preemptions: to host memory, and back          */
    size_t swapped_out_bytes, swapped_in_bytes;
    double kv_waste;            /* unfilled share of the slots in owned blocks, mean over steps  */
    double prefill_s, decode_s; /* seconds in steps with, without prefill tokens             */
};
/* Any thread. */
void engine_get_stats(struct engine *e, struct engine_stats *out);

/* ---- devices -------------------------------------------------------------------------------- */

/* Describes a device without keeping it open. ERR_RESOURCE when there is none of that kind. */
int device_describe(struct device_info *out, enum device_kind kind,
                    const struct device_options *options);

#endif

/* device.c - the CPU as a device: opening, memory, scratch, and the table backend_cpu.
 *
 * Operations run at once, so sync has nothing to wait for.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/machine.h"

#include <assert.h>
#include <malloc.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Memory from this size on starts at a huge page and asks for them: a decode step streams all
 * weights, and with 4 KiB pages each of them costs a walk of the page table. What is left behind
 * the last whole one has small pages: filling it up would add a quarter to the weights of
 * Qwen3-0.6B in int8. */
#define HUGE_PAGE_BYTES ((size_t)2 << 20)

/* ---- opening ---- */

static bool always(void)
{
    return true;
}

#ifdef __x86_64__

/* Every processor with AVX2 has F16C, for which clang 14 has no name here. */
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static bool has_avx512vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_avx512bf16(void)
{
    return has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
}

/* Tiles of bf16 and int8 are bits of EDX of CPUID leaf 7, for which clang 14 has no names here. A
 * process must ask the kernel for their registers, which it refuses where it does not know them. */
static bool has_amx(void)
{
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, amx_int8 = 1u << 25;
    const unsigned all = amx_bf16 | amx_tile | amx_int8;
    const long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18; /* Linux asm/prctl.h */
    unsigned eax, ebx, ecx, edx;
    return has_avx512bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
           (edx & all) == all &&
           syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
}

#endif

static const struct {
    const struct cpu_kernels *kernels;
    bool (*runs_here)(void);
} variants[] = {
    /* from the slowest to the fastest */
    {&cpu_kernels_plain, always},
#ifdef __x86_64__
    {&cpu_kernels_avx2, has_avx2},
    {&cpu_kernels_avx512, has_avx512},
    {&cpu_kernels_avx512vnni, has_avx512vnni},
    {&cpu_kernels_avx512bf16, has_avx512bf16},
    {&cpu_kernels_amx, has_amx},
#endif
};

static void refuse_isa(const char *isa, const char *why)
{
    struct str valid = {0};
    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        if (variants[i].runs_here())
            str_appendf(&valid, "%s%s", valid.len ? ", " : "", variants[i].kernels->isa);
    }
    err_set(ERR_CONFIG, "CPU instruction set '%s': %s; valid on this machine: %s", isa, why,
            valid.data);
    str_free(&valid);
}

/* The fastest variant of this CPU, or the one named `isa`. NULL with an error. */
static const struct cpu_kernels *choose_kernels(const char *isa)
{
    for (size_t i = ARRAY_LEN(variants); i-- > 0;) {
        bool runs_here = variants[i].runs_here();
        if (!isa && runs_here)
            return variants[i].kernels;
        if (!isa || strcmp(isa, variants[i].kernels->isa) != 0)
            continue;
        if (runs_here)
            return variants[i].kernels;
        refuse_isa(isa, "this processor or its kernel lacks it");
        return NULL;
    }
    refuse_isa(isa, "unknown");
    return NULL;
}

static int choose_threads(int wanted)
{
    if (wanted > 0)
        return MIN(wanted, CPU_MAX_THREADS);
    if (getenv("OMP_NUM_THREADS"))
        return MIN(omp_get_max_threads(), CPU_MAX_THREADS);
    return MIN(machine_cpus(), CPU_MAX_THREADS);
}

static bool is_bound_by_user(void)
{
    return getenv("OMP_PROC_BIND") || getenv("OMP_PLACES") || getenv("GOMP_CPU_AFFINITY") ||
           getenv("KMP_AFFINITY");
}

static void bind_thread(const cpu_set_t *cpus)
{
    (void)sched_setaffinity(0, sizeof(*cpus), cpus); /* a hint: slower without, not wrong */
}

/* Gives each thread a processor of its own among those that the caller may run on, when there are
 * as many: a thread that stays finds its part of the weights in its caches and on its NUMA node,
 * and never shares a processor with another one while a third is idle (two threads on two
 * processors that others use as well, batches of 8: 108 to 116 instead of 81 to 87 tokens/s). Fewer
 * threads could all be put where another process has put its own, so they stay free. So does the
 * caller, whose mask would be inherited by every thread that it starts; the others leave it the
 * first processor. */
static void place_threads(int n_threads)
{
    cpu_set_t allowed;
    if (is_bound_by_user() || sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return;
    bool one_each = CPU_COUNT(&allowed) == n_threads;
#pragma omp parallel num_threads(n_threads)
    {
        cpu_set_t own = allowed;
        int thread = omp_get_thread_num();
        for (int cpu = 0, n = 0; one_each && cpu < CPU_SETSIZE; cpu++) {
            if (CPU_ISSET(cpu, &allowed) && n++ != thread)
                CPU_CLR(cpu, &own);
        }
        if (thread > 0)
            bind_thread(&own);
    }
}

static struct device *cpu_open(const struct device_options *options)
{
    const struct cpu_kernels *kernels = choose_kernels(options->isa);
    if (!kernels)
        return NULL;
    struct cpu_device *d = xcalloc(1, sizeof(*d));
    d->base.ops = &backend_cpu;
    d->base.act_dtype = DTYPE_F32;
    d->kernels = kernels;
    d->n_threads = choose_threads(options->n_threads);
    place_threads(d->n_threads);
    struct device_info *info = &d->base.info;
    info->kind = DEVICE_CPU;
    info->n_threads = d->n_threads;
    info->memory_bytes = machine_memory_bytes();
    info->free_bytes = machine_memory_free_bytes();
    machine_cpu_name(info->name);
    snprintf(info->isa, sizeof(info->isa), "%s", kernels->isa);
    return &d->base;
}

static void cpu_close(struct device *device)
{
    if (!device)
        return;
    struct cpu_device *d = cpu_device(device);
    free(d->shared);
    free(d->local);
    free(d);
}

/* ---- memory ---- */

/* Linux promises memory that it does not have, and kills when it is touched. So a large request is
 * held against what is free now, and against what was free at the start less what was handed out
 * since, because that may not have been touched yet. */
static bool is_available(const struct cpu_device *d, size_t bytes)
{
    if (bytes < HUGE_PAGE_BYTES)
        return true;
    size_t at_start = d->base.info.free_bytes;
    size_t left = at_start - MIN(at_start, d->allocated_bytes);
    return bytes <= left && bytes <= machine_memory_free_bytes();
}

static void *cpu_alloc(struct device *device, size_t bytes)
{
    struct cpu_device *d = cpu_device(device);
    size_t align = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : CPU_CACHE_LINE;
    size_t with_padding; /* of the allocator */
    void *memory = NULL;
    if (size_add(&with_padding, bytes, align) && is_available(d, bytes) &&
        posix_memalign(&memory, align, MAX(bytes, (size_t)1)) != 0)
        memory = NULL;
    if (!memory) {
        char want[32], have[32];
        err_set(ERR_RESOURCE, "not enough memory: %s wanted, %s free",
                format_bytes(want, (double)bytes),
                format_bytes(have, (double)machine_memory_free_bytes()));
        return NULL;
    }
    if (align == HUGE_PAGE_BYTES)
        /* A hint: slower without, not wrong. */
        (void)madvise(memory, bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, MADV_HUGEPAGE);
    d->allocated_bytes += malloc_usable_size(memory);
    return memory;
}

static void cpu_free(struct device *device, void *memory)
{
    if (!memory)
        return;
    cpu_device(device)->allocated_bytes -= malloc_usable_size(memory);
    free(memory);
}

static void cpu_copy(struct device *device, void *dst, const void *src, size_t bytes)
{
    (void)device;
    if (bytes)
        memcpy(dst, src, bytes);
}

static void cpu_copy_blocks(struct device *device, const struct copy_blocks_args *a)
{
    const struct cpu_device *d = cpu_device(device);
#pragma omp parallel for collapse(2) schedule(static)                                              \
    num_threads(cpu_threads(d, a->n_copies * a->n_planes, (int)a->bytes))
    for (int c = 0; c < a->n_copies; c++) {
        for (int p = 0; p < a->n_planes; p++) {
            size_t dst = (size_t)p * (size_t)a->dst.n_blocks + (size_t)a->copy[c].dst;
            size_t src = (size_t)p * (size_t)a->src.n_blocks + (size_t)a->copy[c].src;
            memcpy(a->dst.memory + dst * a->bytes, a->src.memory + src * a->bytes, a->bytes);
        }
    }
}

static void cpu_sync(struct device *device)
{
    (void)device;
}

/* ---- scratch ---- */

void *cpu_local_scratch(const struct cpu_device *device)
{
    return device->local + (size_t)omp_get_thread_num() * device->local_bytes;
}

/* Replaces *memory by a larger one; its contents are not kept. */
static int grow(struct device *device, char **memory, size_t *have, size_t needed, size_t copies)
{
    if (needed <= *have)
        return 0;
    size_t total;
    if (!size_mul(&total, needed, copies))
        return err_set(ERR_RESOURCE, "the scratch memory of a step is too large to count");
    char *larger = cpu_alloc(device, total);
    if (!larger)
        return err_prefix("scratch memory of a step");
    cpu_free(device, *memory);
    *memory = larger;
    *have = needed;
    return 0;
}

static int cpu_reserve(struct device *device, const struct step_limits *limits)
{
    struct cpu_device *d = cpu_device(device);
    size_t local = MAX(cpu_attention_scratch_bytes(limits), cpu_sample_scratch_bytes(limits));
    local = CEIL_DIV(local, CPU_CACHE_LINE) * CPU_CACHE_LINE;
    if (grow(device, &d->shared, &d->shared_bytes, cpu_linear_scratch_bytes(limits), 1) != 0)
        return -1;
    return grow(device, &d->local, &d->local_bytes, local, (size_t)d->n_threads);
}

static void cpu_fetch_begin(struct device *device, int slot, const void *src, size_t bytes)
{
    assert(bytes <= FETCH_MAX_BYTES);
    memcpy(cpu_device(device)->fetched[slot], src, bytes);
}

static void cpu_fetch_end(struct device *device, int slot, void *host, size_t bytes)
{
    memcpy(host, cpu_device(device)->fetched[slot], bytes);
}

/* ---- recording: the CPU has nothing to gain from it ---- */

static bool cpu_graph_begin(struct device *device)
{
    (void)device;
    return false;
}

static struct graph *cpu_graph_end(struct device *device)
{
    (void)device;
    assert(!"the CPU records nothing");
    return NULL;
}

static void cpu_graph_run(struct device *device, struct graph *graph)
{
    (void)device;
    (void)graph;
    assert(!"the CPU records nothing");
}

static void cpu_graph_free(struct device *device, struct graph *graph)
{
    (void)device;
    assert(!graph);
}

/* ---- marks: operations are done when they return ---- */

static int64_t cpu_mark(struct device *device)
{
    struct cpu_device *d = cpu_device(device);
    d->marked_s[d->n_marks % MAX_MARKS] = time_monotonic_s();
    return d->n_marks++;
}

static double cpu_mark_read(struct device *device, int64_t mark)
{
    const struct cpu_device *d = cpu_device(device);
    assert(mark < d->n_marks && d->n_marks - mark <= MAX_MARKS);
    return d->marked_s[mark % MAX_MARKS];
}

const struct backend backend_cpu = {
    .kind = DEVICE_CPU,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .alloc_host = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .fetch_begin = cpu_fetch_begin,
    .fetch_end = cpu_fetch_end,
    .copy_blocks = cpu_copy_blocks,
    .sync = cpu_sync,
    .reserve = cpu_reserve,
    .weight_load = cpu_weight_load,
    .weight_free = cpu_weight_free,
    .embed = cpu_embed,
    .add_rmsnorm = cpu_add_rmsnorm,
    .linear_add_rmsnorm = cpu_linear_add_rmsnorm,
    .linear = cpu_linear,
    .rope_cache = cpu_rope_cache,
    .attention_plan = cpu_attention_plan,
    .attention = cpu_attention,
    .gather = cpu_gather,
    .sum_words = cpu_sum_words,
    .sample = cpu_sample,
    .graph_begin = cpu_graph_begin,
    .graph_end = cpu_graph_end,
    .graph_run = cpu_graph_run,
    .graph_free = cpu_graph_free,
    .mark = cpu_mark,
    .mark_read = cpu_mark_read,
};

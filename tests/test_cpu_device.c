/* test_cpu_device.c - opening the CPU as a device: instruction sets, threads, memory, and the
 * limits that control groups set, read from made-up trees of their files.
 */
#include "kernels/cpu/machine.h"
#include "tests/ops_reference.h"

#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

static void the_best_instruction_set_is_chosen(void **state)
{
    struct device *device = backend_cpu.open(&(struct device_options){0});
    const char *best = NULL;
    (void)state;
    assert_non_null(device);
    for (int i = 0; i < N_CPU_ISAS; i++) {
        struct device *forced = open_cpu(CPU_ISAS[i], 1);
        if (!forced)
            continue;
        assert_string_equal(forced->info.isa, CPU_ISAS[i]);
        best = CPU_ISAS[i];
        backend_cpu.close(forced);
    }
    assert_string_equal(device->info.isa, best);
    assert_true(device->info.name[0] != '\0');
    assert_in_range(device->info.n_threads, 1, 1024);
    assert_true(device->info.free_bytes > 0);
    assert_true(device->info.free_bytes <= device->info.memory_bytes);
    assert_int_equal(device->act_dtype, DTYPE_F32);
    backend_cpu.close(device);
}

static void an_unknown_instruction_set_is_refused_with_the_valid_names(void **state)
{
    (void)state;
    assert_null(backend_cpu.open(&(struct device_options){.isa = "avx1024"}));
    assert_error(ERR_CONFIG, "avx1024");
    assert_error(ERR_CONFIG, "plain");
}

static void a_wanted_number_of_threads_is_taken(void **state)
{
    (void)state;
    struct device *device = open_cpu("plain", 3);
    assert_int_equal(device->info.n_threads, 3);
    backend_cpu.close(device);
}

/* ---- where threads run ---- */

#define MAX_MASKS 64

/* The masks of the threads that operations of n_threads threads run on. */
static void get_masks(cpu_set_t mask[MAX_MASKS], int n_threads)
{
#pragma omp parallel num_threads(n_threads)
    sched_getaffinity(0, sizeof(*mask), &mask[omp_get_thread_num()]);
}

static bool is_inside(const cpu_set_t *mask, const cpu_set_t *all)
{
    cpu_set_t both;
    CPU_AND(&both, mask, all);
    return CPU_EQUAL(&both, mask);
}

static void as_many_threads_as_processors_have_one_each(void **state)
{
    cpu_set_t all, mask[MAX_MASKS], taken;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    int n = CPU_COUNT(&all);
    if (n == 1 || n > MAX_MASKS)
        skip();
    struct device *device = open_cpu("plain", n);
    get_masks(mask, n);
    assert_true(CPU_EQUAL(&mask[0], &all)); /* what threads of the caller will inherit */
    CPU_ZERO(&taken);
    for (int i = 1; i < n; i++) {
        assert_int_equal(CPU_COUNT(&mask[i]), 1);
        assert_true(is_inside(&mask[i], &all));
        CPU_OR(&taken, &taken, &mask[i]);
    }
    assert_int_equal(CPU_COUNT(&taken), n - 1);
    backend_cpu.close(device);
}

/* Two such processes would share some processors and leave others idle. */
static void fewer_or_more_threads_than_processors_stay_free(void **state)
{
    cpu_set_t all, mask[MAX_MASKS];
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    int n = CPU_COUNT(&all);
    if (n + 1 > MAX_MASKS)
        skip();
    backend_cpu.close(open_cpu("plain", n)); /* what it set must not stay */
    for (int n_threads = n > 1 ? n - 1 : n + 1; n_threads <= n + 1; n_threads += 2) {
        struct device *device = open_cpu("plain", n_threads);
        get_masks(mask, n_threads);
        for (int i = 0; i < n_threads; i++)
            assert_true(CPU_EQUAL(&mask[i], &all));
        backend_cpu.close(device);
    }
}

static void a_binding_of_the_user_is_left_alone(void **state)
{
    cpu_set_t all, mask[MAX_MASKS];
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    int n = CPU_COUNT(&all);
    if (n > MAX_MASKS)
        skip();
    backend_cpu.close(open_cpu("plain", n + 1)); /* frees all threads */
    setenv("OMP_PROC_BIND", "false", 1);
    struct device *device = open_cpu("plain", n);
    unsetenv("OMP_PROC_BIND");
    get_masks(mask, n);
    for (int i = 0; i < n; i++)
        assert_true(CPU_EQUAL(&mask[i], &all));
    backend_cpu.close(device);
}

/* ---- memory ---- */

static void memory_is_aligned_and_too_much_is_refused(void **state)
{
    static const size_t sizes[] = {0, 1, 64, 4096, 5 << 20};
    (void)state;
    struct device *device = open_cpu("plain", 1);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        char *memory = device->ops->alloc(device, sizes[i]);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 64, 0);
        memset(memory, 1, sizes[i]);
        device->ops->free(device, memory);
    }
    device->ops->free(device, NULL);
    assert_null(device->ops->alloc(device, device->info.memory_bytes + 1));
    assert_error(ERR_RESOURCE, "memory");
    assert_null(device->ops->alloc(device, SIZE_MAX));
    assert_error(ERR_RESOURCE, "memory");
    backend_cpu.close(device);
}

/* Linux would promise both halves, because neither has been touched. */
static void memory_that_was_promised_cannot_be_promised_again(void **state)
{
    (void)state;
    struct device *device = open_cpu("plain", 1);
    size_t most = device->info.free_bytes / 8 * 5;
    void *first = device->ops->alloc(device, most);
    assert_non_null(first);
    assert_null(device->ops->alloc(device, most));
    assert_error(ERR_RESOURCE, "memory");
    device->ops->free(device, first);
    first = device->ops->alloc(device, most);
    assert_non_null(first);
    device->ops->free(device, first);
    backend_cpu.close(device);
}

static void copies_arrive(void **state)
{
    char from[100], to[100];
    (void)state;
    struct device *device = open_cpu("plain", 1);
    for (size_t i = 0; i < sizeof(from); i++)
        from[i] = (char)i;
    void *a = to_device(device, from, sizeof(from));
    device->ops->sync(device);
    device->ops->download(device, to, a, sizeof(to));
    assert_memory_equal(to, from, sizeof(from));
    device->ops->free(device, a);
    backend_cpu.close(device);
}

static void blocks_are_copied_to_host_memory_back_and_within_a_pool(void **state)
{
    (void)state;
    for (int n_threads = 1; n_threads <= 2; n_threads++) {
        struct device *device = open_cpu("plain", n_threads);
        check_copy_blocks(device, 1, 2, 32);
        check_copy_blocks(device, 7, 6, 48);
        check_copy_blocks(device, 33, 56, 4096);
        backend_cpu.close(device);
    }
}

static void scratch_that_cannot_be_had_is_refused(void **state)
{
    (void)state;
    struct device *device = open_cpu("plain", 1);
    struct step_limits limits = {.max_tokens = 1 << 10,
                                 .max_seqs = 1,
                                 .max_rows = 1,
                                 .max_kv_len = 1,
                                 .max_width = 1 << 30,
                                 .vocab = 1,
                                 .shape = {1, 1, 8, 1, DTYPE_F32}};
    assert_int_equal(device->ops->reserve(device, &limits), -1);
    assert_error(ERR_RESOURCE, "scratch");
    backend_cpu.close(device);
}

/* ---- marks ---- */

static void marks_are_times_of_the_host_between_its_calls(void **state)
{
    (void)state;
    double called_s[2 * MAX_MARKS], returned_s[2 * MAX_MARKS];
    struct device *device = open_cpu("plain", 1);
    for (int64_t i = 0; i < 2 * MAX_MARKS; i++) {
        called_s[i] = time_monotonic_s();
        assert_int_equal(device->ops->mark(device), i);
        returned_s[i] = time_monotonic_s();
        if (i < 4)
            continue;
        double at_s = device->ops->mark_read(device, i - 4);
        assert_true(at_s >= called_s[i - 4] && at_s <= returned_s[i - 4]);
    }
    device->ops->close(device);
}

/* ---- control groups ---- */

/* Writes root/group/file. */
static void put(const char *root, const char *group, const char *file, const char *text)
{
    char *folder = xasprintf("%s/%s%s", test_dir(), root, group);
    assert_int_equal(dir_make(folder), 0);
    char *name = xasprintf("%s%s/%s", root, group, file);
    free(test_write_text(name, text));
    free(name);
    free(folder);
}

static struct cgroup_limits read_limits(const char *membership, const char *root)
{
    char *file = test_write_text("membership", membership), *path = test_path(root);
    struct cgroup_limits limits = cgroup_limits_read(file, path);
    free(file);
    free(path);
    return limits;
}

static void limits_of_version_2_and_of_all_ancestors_bind(void **state)
{
    (void)state;
    put("v2", "/job", "memory.max", "1000000\n");
    put("v2", "/job", "memory.current", "300000\n");
    put("v2", "/job", "memory.stat", "anon 5\ninactive_file 100000\n");
    put("v2", "/job", "cpu.max", "250000 100000\n");
    put("v2", "/job/step", "memory.max", "max\n");
    put("v2", "/job/step", "memory.current", "200000\n");
    put("v2", "/job/step", "cpu.max", "max 100000\n");
    struct cgroup_limits limits = read_limits("0::/job/step\n", "v2");
    assert_int_equal(limits.memory_bytes, 1000000);
    assert_int_equal(limits.memory_free_bytes, 800000);
    assert_true(limits.cpus == 2.5);
}

static void limits_of_version_1_are_read_by_controller(void **state)
{
    (void)state;
    put("v1", "/memory/job", "memory.limit_in_bytes", "5000\n");
    put("v1", "/memory/job", "memory.usage_in_bytes", "9000\n");
    put("v1", "/memory", "memory.limit_in_bytes", "9223372036854771712\n");
    put("v1", "/cpu/job", "cpu.cfs_quota_us", "-1\n");
    put("v1", "/cpu/job", "cpu.cfs_period_us", "100000\n");
    put("v1", "/cpu", "cpu.cfs_quota_us", "50000\n");
    put("v1", "/cpu", "cpu.cfs_period_us", "100000\n");
    struct cgroup_limits limits =
        read_limits("9:name=systemd:/\n4:memory:/job\n2:cpu,cpuacct:/job\n3:cpuset:/x\n", "v1");
    assert_int_equal(limits.memory_bytes, 5000);
    assert_int_equal(limits.memory_free_bytes, 0);
    assert_true(limits.cpus == 0.5);
}

static void without_control_groups_nothing_is_limited(void **state)
{
    (void)state;
    struct cgroup_limits limits = read_limits("0::/\n7:memory:/gone\nnonsense\n", "absent");
    assert_true(limits.memory_bytes == MACHINE_UNLIMITED);
    assert_true(limits.memory_free_bytes == MACHINE_UNLIMITED);
    assert_true(limits.cpus == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_best_instruction_set_is_chosen),
        cmocka_unit_test(an_unknown_instruction_set_is_refused_with_the_valid_names),
        cmocka_unit_test(a_wanted_number_of_threads_is_taken),
        cmocka_unit_test(as_many_threads_as_processors_have_one_each),
        cmocka_unit_test(fewer_or_more_threads_than_processors_stay_free),
        cmocka_unit_test(a_binding_of_the_user_is_left_alone),
        cmocka_unit_test(memory_is_aligned_and_too_much_is_refused),
        cmocka_unit_test(memory_that_was_promised_cannot_be_promised_again),
        cmocka_unit_test(copies_arrive),
        cmocka_unit_test(blocks_are_copied_to_host_memory_back_and_within_a_pool),
        cmocka_unit_test(scratch_that_cannot_be_had_is_refused),
        cmocka_unit_test(marks_are_times_of_the_host_between_its_calls),
        cmocka_unit_test(limits_of_version_2_and_of_all_ancestors_bind),
        cmocka_unit_test(limits_of_version_1_are_read_by_controller),
        cmocka_unit_test(without_control_groups_nothing_is_limited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

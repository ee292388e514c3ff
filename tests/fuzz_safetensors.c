/* Fuzz target of the checkpoint reader: any bytes as model.safetensors, or as an index beside one
 * good file, give an error or a checkpoint whose tensors can all be read.
 *
 *   clang -std=c17 -D_GNU_SOURCE -g -O1 -I. -fsanitize=fuzzer,address,undefined \
 *       -fno-sanitize-recover=all tests/fuzz_safetensors.c engine/safetensors.c engine/util.c \
 *       kernels/backend.c -ljansson -lcrypto -lm -o fuzz_safetensors
 *   ./fuzz_safetensors -max_len=4096 -max_total_time=60
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static char dir[] = "/dev/shm/quire-fuzz-XXXXXX";

static void write_file(const char *name, const void *data, size_t n)
{
    char *path = path_join(dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n)
        die("%s: cannot write", path);
    fclose(f);
    free(path);
}

static void remove_file(const char *name)
{
    char *path = path_join(dir, name);
    unlink(path);
    free(path);
}

static void remove_all(void)
{
    remove_file("model.safetensors");
    remove_file("model.safetensors.index.json");
    remove_file("good");
    rmdir(dir);
}

static void make_dir(void)
{
    static const char good[] = "\x36\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1],"
                               "\"data_offsets\":[0,4]}}      data";
    if (!mkdtemp(dir))
        die("%s: cannot make this folder", dir);
    atexit(remove_all);
    write_file("good", good, sizeof(good) - 1);
}

/* The first byte chooses which file the others are. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static bool ready;
    if (!ready)
        make_dir();
    ready = true;
    if (n == 0)
        return 0;
    bool as_index = data[0] == 'i';
    remove_file(as_index ? "model.safetensors" : "model.safetensors.index.json");
    write_file(as_index ? "model.safetensors.index.json" : "model.safetensors", data + 1, n - 1);

    struct safetensors *s;
    char hex[SHA256_HEX_LEN + 1];
    if (safetensors_open(&s, dir) != 0)
        return 0;
    safetensors_fingerprint(s, hex);
    const size_t dim[2] = {1, 1};
    if (!safetensors_get(s, "a", 2, dim))
        err_clear();
    safetensors_close(s);
    return 0;
}

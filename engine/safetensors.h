/* safetensors.h - the tensors of a checkpoint directory, memory-mapped.
 *
 * Format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON
 * header {name: {dtype, shape, data_offsets: [begin, end]}}, then the data. Every name, dtype,
 * shape and offset is checked when the file is opened: in range, not overlapping, size = shape x
 * dtype.
 */
#ifndef QUIRE_SAFETENSORS_H
#define QUIRE_SAFETENSORS_H

#include "kernels/backend.h"

#define SAFETENSORS_MAX_HEADER ((size_t)100 << 20) /* the format's own limit */
#define SAFETENSORS_MAX_DIMS   8
#define SAFETENSORS_MAX_FILES  1024

struct safetensors;

struct tensor {
    const char *name;
    const char *file; /* for messages */
    enum dtype dtype;
    int n_dims;
    size_t dim[SAFETENSORS_MAX_DIMS];
    const void *data; /* mapped, read-only, borrowed from the struct safetensors */
};

/* Opens dir/model.safetensors, or the shards that dir/model.safetensors.index.json names.
 * ERR_DATA names the file, the tensor and what is wrong with it. Tensors of a dtype that the engine
 * does not use (integers, booleans) are skipped. */
int safetensors_open(struct safetensors **out, const char *dir);
void safetensors_close(struct safetensors *s);

/* NULL when there is none of that name. Borrowed. */
const struct tensor *safetensors_find(const struct safetensors *s, const char *name);
/* The tensor with exactly this shape (n_dims sizes), or NULL with ERR_DATA that gives name, the
 * expected shape and what is there, or the nearest name. */
const struct tensor *safetensors_get(const struct safetensors *s, const char *name, int n_dims,
                                     const size_t *dim);

/* Gives the memory of a tensor that has been read back to the page cache: a mapped page counts as
 * memory of this process. It may be read again. */
void safetensors_release(const struct safetensors *s, const struct tensor *t);

/* SHA-256 (hex) over names, dtypes, shapes, file sizes and a sample of every tensor's bytes:
 * identifies the checkpoint without reading all of it. */
void safetensors_fingerprint(const struct safetensors *s, char hex[SHA256_HEX_LEN + 1]);
/* SHA-256 (hex) over size and time of the last change of every file: it differs after any change,
 * even of bytes that the fingerprint leaves out, but also after a copy. */
void safetensors_version(const struct safetensors *s, char hex[SHA256_HEX_LEN + 1]);

#endif

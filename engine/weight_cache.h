/* weight_cache.h - the packed matrices of a model in a file, which later starts map. Internal to
 * the engine.
 *
 * For devices whose memory is the host's. A start that maps the file packs nothing, and processes
 * of one machine have one copy of the weights in memory. The file holds the matrices in the order
 * in which they are loaded; its name is a hash of all that decides their bytes: the model's
 * fingerprint and the version of its files, the instruction set, and the program, for the layout is
 * its own. So a file is never out of date, and any may be deleted at any time.
 *
 * When there is no file, the matrices are loaded as ever and written beside it, and take its name
 * when they are complete. A cache that cannot be read or written costs a warning and nothing else.
 */
#ifndef QUIRE_WEIGHT_CACHE_H
#define QUIRE_WEIGHT_CACHE_H

#include "kernels/backend.h"

struct weight_cache;

/* The cache of a model, by its fingerprint and the version of its files ("" for none), in a folder
 * that is made when it is missing. NULL: dir is NULL, the device has its own memory, or nothing can
 * be read or written there. */
struct weight_cache *weight_cache_open(const char *dir, struct device *device,
                                       const char *fingerprint, const char *version);

/* All of these accept NULL. */

/* The next matrix from the file: fills in data, bytes and n_out of *w. false: it has to be loaded.
 * Its memory belongs to the cache. */
bool weight_cache_get(struct weight_cache *c, struct weight *w);
/* The same matrix, loaded, for the file. */
void weight_cache_add(struct weight_cache *c, const struct weight *w);
/* All matrices were added: gives the file its name. */
void weight_cache_complete(struct weight_cache *c);
/* Whether the matrix came from the file, so that the device must not free it. */
bool weight_cache_owns(const struct weight_cache *c, const struct weight *w);
void weight_cache_close(struct weight_cache *c);

#endif

/* store_file.h - the file under a store: its kind of file system and its one writer. */
#ifndef QUIRE_STORE_FILE_H
#define QUIRE_STORE_FILE_H

#include "engine/util.h"

/* Whether a file system of this statfs f_type can carry a write-ahead log. The log's index is
 * memory shared by all processes that use the database, so they must run on one machine. */
bool store_fs_is_local(int64_t f_type);

/* The same for the file system of an existing file or folder; false when it cannot be asked. */
bool store_path_is_local(const char *path);

/* The right to write to a database: an open-file-description lock on FILE.lock, whose text says who
 * holds it. The kernel drops it with the process, however that ends. */
struct store_lock;

/* ERR_RESOURCE when another process (or another store of this one) holds it, with that one's pid,
 * host and time. The folder of `path` must exist; symbolic links are followed. */
int store_lock_open(struct store_lock **out, const char *path);
void store_lock_close(struct store_lock *lock); /* accepts NULL */

#endif

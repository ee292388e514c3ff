/* store_file.h - the file under a store: its kind of file system and its one writer. */
#ifndef QUIRE_STORE_FILE_H
#define QUIRE_STORE_FILE_H

#include "engine/util.h"

/* Whether a file system of this statfs f_type can carry a write-ahead log. The log's index is
 * memory shared by all processes that use the database, so they must run on one machine. */
bool store_fs_is_local(int64_t f_type);

/* The same for the file system of an existing file or folder; false when it cannot be asked. A test
 * can pretend another type: environment QUIRE_TEST_FS_TYPE=0x6969 (NFS). */
bool store_path_is_local(const char *path);

/* Whether two names lead to one existing file. */
bool store_same_file(const char *a, const char *b);

/* Whether a write-ahead log works in the folder of a database that nobody else writes to: tried out
 * with a throw-away database, PATH.probe, by two connections. */
bool store_probe_log(const char *path);

/* The right to write to a database: an open-file-description lock on FILE.lock, whose text says who
 * holds it. The kernel drops it with the process, however that ends. */
struct store_lock;
struct store_owner; /* store.h */

/* ERR_RESOURCE when another process (or another store of this one) holds it, with that one's pid,
 * host and time, or when the file system cannot lock. Taken all the same from an older attempt of
 * the owner's job; ERR_STOPPED when a newer attempt of it holds it. The folder of `path` must
 * exist; symbolic links are followed. */
int store_lock_open(struct store_lock **out, const char *path, const struct store_owner *owner);
void store_lock_close(struct store_lock *lock); /* accepts NULL */

/* Whether another attempt's name is in the file of a lock that is held. A hint: a file server may
 * show a new name late. */
bool store_lock_is_asked_for(const struct store_lock *lock);

#endif

/* version.h - which source a binary was built from, for the store and `quire doctor`.
 *
 * The Makefile passes the commit to version.c alone, so that a new commit recompiles one file.
 */
#ifndef QUIRE_VERSION_H
#define QUIRE_VERSION_H

#include <stdbool.h>

/* The 40 hex digits of the commit, or "unknown" when built outside a git checkout. Static. */
const char *version_git_commit(void);

/* True when the sources differed from that commit at build time. */
bool version_git_dirty(void);

#endif

/* version.c - see version.h. */
#include "runner/version.h"

#ifndef QUIRE_GIT_COMMIT
#define QUIRE_GIT_COMMIT "unknown"
#define QUIRE_GIT_DIRTY  0
#endif

const char *version_git_commit(void)
{
    return QUIRE_GIT_COMMIT;
}

bool version_git_dirty(void)
{
    return QUIRE_GIT_DIRTY;
}

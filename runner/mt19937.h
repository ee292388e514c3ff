/* mt19937.h - Python's random.Random, as far as published workloads use it.
 *
 * MT19937 (Matsumoto and Nishimura 1998), seeded like CPython's random.seed(int): init_by_array
 * over the 32-bit digits of the number. randint draws by rejection over getrandbits.
 */
#ifndef QUIRE_MT19937_H
#define QUIRE_MT19937_H

#include <stdint.h>

struct mt19937 {
    uint32_t state[624];
    int next;
};

void mt19937_init(struct mt19937 *r, uint64_t seed);
uint32_t mt19937_next(struct mt19937 *r);
/* Python's randint(low, high), both included; high - low < 2^32 - 1. */
int64_t mt19937_randint(struct mt19937 *r, int64_t low, int64_t high);

#endif

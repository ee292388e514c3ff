/* philox.h - Philox4x32-10, the counter-based random generator of the sampler.
 *
 * A draw is a pure function of (seed, index), so that a sample does not depend on which draws were
 * made before it, in which batch, or on which device. Shared by all backends.
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */
#ifndef QUIRE_PHILOX_H
#define QUIRE_PHILOX_H

#include "engine/util.h"

/* Replaces the 128-bit counter by its image under the 64-bit key. */
HOST_AND_DEVICE static inline void philox4x32_10(uint32_t counter[4], uint32_t key0, uint32_t key1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * counter[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * counter[2];
        uint32_t c1 = counter[1], c3 = counter[3];
        counter[0] = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        counter[1] = (uint32_t)product1;
        counter[2] = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        counter[3] = (uint32_t)product0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* The draw of (seed, index): uniform in [0, 1) in steps of 2^-53. */
HOST_AND_DEVICE static inline double philox_uniform(uint64_t seed, uint32_t index)
{
    uint32_t counter[4] = {index, 0, 0, 0};
    philox4x32_10(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
    uint64_t bits = ((uint64_t)counter[0] << 32 | counter[1]) >> 11;
    return (double)bits * 0x1p-53;
}

#endif

/* mt19937.c - see mt19937.h.
 *
 * The generator is Matsumoto and Nishimura's MT19937 ("Mersenne Twister", ACM TOMACS 8, 1998) with
 * their initialisation by array of 2002; how Python's random uses it is documented with
 * random.seed, random.getrandbits and random.randint.
 */
#include "runner/mt19937.h"

#include <assert.h>

#define N     624
#define M     397
#define UPPER 0x80000000u
#define LOWER 0x7FFFFFFFu

static void init_by_number(struct mt19937 *r, uint32_t seed)
{
    r->state[0] = seed;
    for (uint32_t i = 1; i < N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ (r->state[i - 1] >> 30)) + i;
    r->next = N;
}

/* The previous word, mixed for the recurrences of the initialisation. */
static uint32_t mixed_before(const struct mt19937 *r, int i, uint32_t factor)
{
    return (r->state[i - 1] ^ (r->state[i - 1] >> 30)) * factor;
}

/* Moves to the next word; word 0 always repeats the last one. */
static int step(struct mt19937 *r, int i)
{
    if (++i < N)
        return i;
    r->state[0] = r->state[N - 1];
    return 1;
}

void mt19937_init(struct mt19937 *r, uint64_t seed)
{
    /* Zero has one digit, too. */
    const uint32_t digit[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    int n_digits = digit[1] != 0 ? 2 : 1;

    init_by_number(r, 19650218u);
    int i = 1;
    for (int k = 0; k < N; k++) {
        int j = k % n_digits;
        r->state[i] = (r->state[i] ^ mixed_before(r, i, 1664525u)) + digit[j] + (uint32_t)j;
        i = step(r, i);
    }
    for (int k = 1; k < N; k++) {
        r->state[i] = (r->state[i] ^ mixed_before(r, i, 1566083941u)) - (uint32_t)i;
        i = step(r, i);
    }
    r->state[0] = UPPER;
}

static void refill(struct mt19937 *r)
{
    for (int i = 0; i < N; i++) {
        uint32_t y = (r->state[i] & UPPER) | (r->state[(i + 1) % N] & LOWER);
        r->state[i] = r->state[(i + M) % N] ^ (y >> 1) ^ (y & 1 ? 0x9908B0DFu : 0);
    }
    r->next = 0;
}

uint32_t mt19937_next(struct mt19937 *r)
{
    if (r->next >= N)
        refill(r);
    uint32_t y = r->state[r->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9D2C5680u;
    y ^= (y << 15) & 0xEFC60000u;
    return y ^ (y >> 18);
}

int64_t mt19937_randint(struct mt19937 *r, int64_t low, int64_t high)
{
    assert(low <= high && high - low < (int64_t)UINT32_MAX);
    uint32_t count = (uint32_t)(high - low) + 1;
    int n_bits = 32 - __builtin_clz(count);
    uint32_t draw;
    do {
        draw = mt19937_next(r) >> (32 - n_bits);
    } while (draw >= count);
    return low + draw;
}

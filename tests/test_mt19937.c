/* test_mt19937.c - the generator against CPython 3.11's random module.
 *
 * The numbers were printed by Python, seed by seed:
 *   r = random.Random(seed); [r.getrandbits(32) for _ in range(2003)]    -> the first 3, the last
 *   r = random.Random(seed); [r.randint(low, high) for _ in range(8)]
 */
#include "runner/mt19937.h"
#include "tests/testing.h"

static void words_are_those_of_pythons_getrandbits(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed;
        uint32_t first[3], last;
    } cases[] = {
        {0, {0xd82c07cd, 0x629f6fbe, 0xc2094cac}, 0xd181d9bf},
        {1, {0x2265b1f5, 0x91b7584a, 0xd8f16adf}, 0x2154e354},
        {42, {0xa3b1799d, 0x1c80317f, 0x06671ad1}, 0xaf88bdec},
        {0xffffffff, {0xa2a6c909, 0x9e9c04f4, 0x3404e941}, 0x9241af2e},
        {0x100000000, {0x1ced31d7, 0x59ef8bbc, 0x6af6d506}, 0xc1564efa},
        {UINT64_MAX, {0x05965e7e, 0x3faff328, 0x568d6a40}, 0x3bcfbb2e},
        {12345678901234567890u, {0x83139e2a, 0xdc43d347, 0xee8fb95d}, 0xe222ffef},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct mt19937 r;
        mt19937_init(&r, cases[i].seed);
        for (int j = 0; j < 3; j++)
            assert_int_equal(mt19937_next(&r), cases[i].first[j]);
        for (int j = 3; j < 2002; j++)
            mt19937_next(&r);
        assert_int_equal(mt19937_next(&r), cases[i].last);
    }
}

static void ranges_are_drawn_as_by_pythons_randint(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed;
        int64_t low, high, drawn[8];
    } cases[] = {
        {7, 5, 5, {5, 5, 5, 5, 5, 5, 5, 5}},
        {7, 0, 1, {1, 0, 1, 0, 0, 0, 1, 0}},
        {3, -10, 10, {-3, 8, 7, -6, 1, 9, 5, 10}},
        {0, 0, 10000, {6311, 6890, 663, 4242, 8376, 7961, 6634, 4969}},
        {0, 100, 1024, {964, 494, 876, 1011, 530, 141, 365, 623}},
        {(UINT64_C(1) << 40) + 5, 0, 255, {137, 14, 23, 84, 40, 68, 122, 70}},
        {9,
         0,
         4294967293,
         {1988601454, 2633739374, 1603362544, 1147333628, 595022250, 799486471, 3721854805,
          2906162014}},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct mt19937 r;
        mt19937_init(&r, cases[i].seed);
        for (int j = 0; j < 8; j++)
            assert_int_equal(mt19937_randint(&r, cases[i].low, cases[i].high), cases[i].drawn[j]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_those_of_pythons_getrandbits),
        cmocka_unit_test(ranges_are_drawn_as_by_pythons_randint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

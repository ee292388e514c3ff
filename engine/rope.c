/* rope.c - the table of rotary position embedding (arch.h: arch_rope_table).
 *
 * Frequency j of head_dim / 2 turns by theta^(-2j / head_dim) radians per position. The scaling
 * kinds slow down the frequencies whose waves are long compared with the context that the model was
 * trained on, each in its own way.
 */
#include "engine/arch.h"

#include <math.h>
#include <stdlib.h>

/* Llama 3.1: short waves are kept, long ones divided by the factor, those between blended. */
static double llama3_frequency(const struct rope_config *rope, double frequency)
{
    double turns = rope->original_max_position * frequency / (2 * M_PI);
    if (turns > rope->high_freq_factor)
        return frequency;
    if (turns < rope->low_freq_factor)
        return frequency / rope->factor;
    double keep =
        (turns - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - keep) * frequency / rope->factor + keep * frequency;
}

/* The (fractional) index of the frequency that makes this many turns over the original context. */
static double yarn_index(const struct model_arch *arch, double turns)
{
    const struct rope_config *rope = &arch->rope;
    return arch->head_dim * log(rope->original_max_position / (turns * 2 * M_PI)) /
           (2 * log(rope->theta));
}

/* YaRN, section 3.2: kept up to beta_fast turns, divided from beta_slow turns on, a linear ramp
 * between. Bounds and rounding are those of Transformers. */
static double yarn_frequency(const struct model_arch *arch, int j, double frequency)
{
    const struct rope_config *rope = &arch->rope;
    double low = yarn_index(arch, rope->beta_fast);
    double high = yarn_index(arch, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, arch->head_dim - 1);
    if (low == high)
        high += 0.001;
    double divided = fmin(fmax((j - low) / (high - low), 0), 1);
    return frequency / rope->factor * divided + frequency * (1 - divided);
}

static double scaled_frequency(const struct model_arch *arch, int j)
{
    const struct rope_config *rope = &arch->rope;
    double frequency = pow(rope->theta, -2.0 * j / arch->head_dim);
    switch (rope->kind) {
    case ROPE_DEFAULT: return frequency;
    case ROPE_LINEAR: return frequency / rope->factor;
    case ROPE_LLAMA3: return llama3_frequency(rope, frequency);
    case ROPE_YARN: return yarn_frequency(arch, j, frequency);
    }
    return frequency;
}

/* YaRN, section 3.4, for a scale of the logits' temperature. */
static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static double attention_factor(const struct rope_config *rope)
{
    if (rope->kind != ROPE_YARN)
        return 1;
    if (rope->attention_factor > 0)
        return rope->attention_factor;
    if (rope->mscale > 0 && rope->mscale_all_dim > 0)
        return yarn_mscale(rope->factor, rope->mscale) /
               yarn_mscale(rope->factor, rope->mscale_all_dim);
    return yarn_mscale(rope->factor, 1);
}

float *arch_rope_table(const struct model_arch *arch, int n_positions)
{
    int half = arch->head_dim / 2;
    size_t bytes = (size_t)n_positions * (size_t)arch->head_dim * sizeof(float);
    float *table = malloc(bytes);
    if (!table) {
        char text[32];
        err_set(ERR_RESOURCE, "no memory for the RoPE table of %d positions (%s)", n_positions,
                format_bytes(text, (double)bytes));
        return NULL;
    }
    double frequency[ARCH_MAX_HEAD_DIM / 2];
    for (int j = 0; j < half; j++)
        frequency[j] = scaled_frequency(arch, j);
    double scale = attention_factor(&arch->rope);
#pragma omp parallel for schedule(static)
    for (int p = 0; p < n_positions; p++) {
        float *row = table + (size_t)p * (size_t)arch->head_dim;
        for (int j = 0; j < half; j++) {
            row[j] = (float)(scale * cos(p * frequency[j]));
            row[half + j] = (float)(scale * sin(p * frequency[j]));
        }
    }
    return table;
}

/* Two loops for the CPU that are slow in torch.

   Plain C for gcc and clang, without Python or torch. cpu.py compiles it on first use and calls it
   through ctypes. All threads call an entry function with the same arguments; each computes tiles
   until none is left, and returns. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Inlining specialises a function for its constant arguments: dtype, neighbourhood, exponent. */
#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32, BFLOAT16 };

INLINE float load(const void *from, int64_t i, int dtype)
{
    if (dtype == FLOAT32)
        return ((const float *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void store(void *to, int64_t i, float value, int dtype)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == FLOAT32)
        ((float *)to)[i] = value;
    else /* To nearest, ties to even. A NaN stays one: none here has any of the low bits set. */
        ((uint16_t *)to)[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- Local response normalisation. Formula and derivative: network/normalization.py. ----

   A tile is a group of channels of some pixels, small enough for its squares to stay in the cache.
   It consists of lines of contiguous values, and the same loops serve both memory formats:

                          a line is                        from a channel to the next
        contiguous        some pixels of one channel       `width` values
        channels_last     a group's channels of one pixel  1 value

   Squares and ratios are padded with `size - 1` channels of zeros around each group, so that the
   sums over a neighbourhood need no bounds. */

typedef struct {
    const void *x, *grad; /* grad: gradient of the output; NULL to compute the output */
    void *out;            /* the output, or the gradient of x */
    int64_t batch, channels, pixels, groups, size, channels_last, dtype;
    float k, alpha_over_size, beta;
    int64_t next_tile, out_of_memory;
} lrn_arguments;

typedef struct {
    const char *x, *grad;
    char *out;
    int64_t lines, length, stride, padded_stride, step;
} lrn_tile;

/* Values of scratch memory, measured: contiguous is fastest in few tiles, channels_last with its
   squares in the first-level cache. */
enum { SCRATCH_CONTIGUOUS = 1 << 16, SCRATCH_CHANNELS_LAST = 1 << 13, WIDEST = 512, VECTOR = 16 };

INLINE float neighbour_sum(const float *from, int64_t step, int64_t size)
{
    float sum = 0;
    for (int64_t j = 0; j < size; j++)
        sum += from[j * step];
    return sum;
}

/* scale^-beta; *reciprocal is 1 / scale. */
INLINE float inverse_power(float scale, float beta, float *reciprocal)
{
    if (beta == 0.75f) {
        float root = 1 / sqrtf(scale);
        *reciprocal = root * root;
        return root * sqrtf(root);
    }
    *reciprocal = 1 / scale;
    return powf(scale, -beta);
}

/* The four loops over a line; `squares` and `ratios` start at the neighbourhood's first channel. */
INLINE void square_line(const void *restrict x, float *restrict squares, int64_t length, int dtype)
{
    for (int64_t i = 0; i < length; i++)
        squares[i] = load(x, i, dtype) * load(x, i, dtype);
}

INLINE void output_line(const void *restrict x, const float *restrict squares, void *restrict out,
                        int64_t length, int64_t step, float k, float alpha, int dtype, int64_t size,
                        float beta)
{
    for (int64_t i = 0; i < length; i++) {
        float reciprocal, scale = k + alpha * neighbour_sum(squares + i, step, size);
        store(out, i, load(x, i, dtype) * inverse_power(scale, beta, &reciprocal), dtype);
    }
}

INLINE void ratio_line(const void *restrict x, const void *restrict grad,
                       const float *restrict squares, float *restrict ratios,
                       float *restrict scaled_grad, int64_t length, int64_t step, float k,
                       float alpha, int dtype, int64_t size, float beta)
{
    for (int64_t i = 0; i < length; i++) {
        float reciprocal, scale = k + alpha * neighbour_sum(squares + i, step, size);
        float scaled = load(grad, i, dtype) * inverse_power(scale, beta, &reciprocal);
        scaled_grad[i] = scaled;
        ratios[i] = load(x, i, dtype) * scaled * reciprocal;
    }
}

INLINE void gradient_line(const void *restrict x, const float *restrict ratios,
                          const float *restrict scaled_grad, void *restrict out, int64_t length,
                          int64_t step, float factor, int dtype, int64_t size)
{
    for (int64_t i = 0; i < length; i++) {
        float sum = neighbour_sum(ratios + i, step, size);
        store(out, i, scaled_grad[i] - factor * load(x, i, dtype) * sum, dtype);
    }
}

INLINE void lrn_one_tile(const lrn_arguments *a, lrn_tile t, float *scratch, int64_t padded_size,
                         int dtype, int64_t size, float beta)
{
    int64_t bytes = t.stride * (dtype == FLOAT32 ? 4 : 2), padded = t.padded_stride;
    float *squares = scratch, *ratios = squares + padded_size, *scaled_grad = ratios + padded_size;
    /* A neighbourhood has size / 2 channels below its own and (size - 1) / 2 above. The gradient
       sums over the channels whose neighbourhoods contain this one: in the other direction. */
    int64_t below = size / 2 * t.step, above = (size - 1) / 2 * t.step;
    for (int64_t line = 0; line < t.lines; line++)
        square_line(t.x + line * bytes, squares + below + line * padded, t.length, dtype);
    if (a->grad == NULL) {
        for (int64_t line = 0; line < t.lines; line++)
            output_line(t.x + line * bytes, squares + line * padded, t.out + line * bytes, t.length,
                        t.step, a->k, a->alpha_over_size, dtype, size, beta);
        return;
    }
    for (int64_t line = 0; line < t.lines; line++)
        ratio_line(t.x + line * bytes, t.grad + line * bytes, squares + line * padded,
                   ratios + above + line * padded, scaled_grad + line * padded, t.length, t.step,
                   a->k, a->alpha_over_size, dtype, size, beta);
    for (int64_t line = 0; line < t.lines; line++)
        gradient_line(t.x + line * bytes, ratios + line * padded, scaled_grad + line * padded,
                      t.out + line * bytes, t.length, t.step, 2 * a->alpha_over_size * beta, dtype,
                      size);
}

/* AlexNet's neighbourhood and exponent have a specialised loop. */
INLINE void lrn_any_tile(const lrn_arguments *a, lrn_tile t, float *scratch, int64_t padded_size,
                         int dtype)
{
    if (a->size == 5 && a->beta == 0.75f)
        lrn_one_tile(a, t, scratch, padded_size, dtype, 5, 0.75f);
    else
        lrn_one_tile(a, t, scratch, padded_size, dtype, a->size, a->beta);
}

void lrn(lrn_arguments *a)
{
    int64_t group = a->channels / a->groups, padded = group + a->size - 1;
    int64_t groups_in_tile = a->channels_last ? a->groups : 1;
    int64_t rows = padded * groups_in_tile, arrays = a->grad ? 3 : 1;
    int64_t scratch_size = a->channels_last ? SCRATCH_CHANNELS_LAST : SCRATCH_CONTIGUOUS;
    int64_t width = scratch_size / (rows * arrays) / VECTOR * VECTOR;
    width = smaller(width < VECTOR ? VECTOR : smaller(width, WIDEST), a->pixels);
    int64_t blocks = (a->pixels + width - 1) / width;
    int64_t tiles = a->batch * (a->groups / groups_in_tile) * blocks;
    float *scratch = calloc((size_t)(rows * width * arrays), sizeof *scratch);
    if (scratch == NULL) {
        a->out_of_memory = 1;
        return;
    }
    /* A thread takes neighbouring tiles, so that the processor prefetches what it reads. */
    int64_t run = (tiles + 63) / 64, first_tile;
    while ((first_tile = __atomic_fetch_add(&a->next_tile, run, __ATOMIC_RELAXED)) < tiles)
        for (int64_t tile = first_tile; tile < smaller(first_tile + run, tiles); tile++) {
            int64_t first = tile % blocks * width, count = smaller(a->pixels - first, width);
            int64_t at = tile / blocks * group * groups_in_tile * a->pixels +
                         first * (a->channels_last ? a->channels : 1);
            at *= a->dtype == FLOAT32 ? 4 : 2;
            const char *x = (const char *)a->x + at, *grad = (const char *)a->grad + at;
            char *out = (char *)a->out + at;
            lrn_tile t = {x, grad, out, group, count, a->pixels, width, width};
            if (a->channels_last)
                t = (lrn_tile){x, grad, out, count * a->groups, group, group, padded, 1};
            if (a->dtype == FLOAT32)
                lrn_any_tile(a, t, scratch, rows * width, FLOAT32);
            else
                lrn_any_tile(a, t, scratch, rows * width, BFLOAT16);
        }
    free(scratch);
}

/* ---- Enlarging and normalising images. Definition: data/preprocess.py, Preprocess. ----

   Bilinear, as torch's with align_corners=False. Each source row is normalised and stretched once;
   an output row is a weighted mean of two of them. Only a crop of the enlarged image is computed;
   it is written to the upper left of the output. */

typedef struct {
    const void *images;     /* (count, 3, height, width): uint8 from 0 to 255, float 0 to 1 */
    const int32_t *corners; /* (count, 2): row and column of each crop's upper left corner */
    void *out;              /* (count, 3, size, size) in its memory format */
    int64_t count, height, width, resize, crop, size, floating, channels_last, dtype;
    float scale, mean[3], std[3]; /* out = (scale * value - mean) / std, values from 0 to 1 */
    int64_t next_image, out_of_memory;
} enlarge_arguments;

/* Position `i` of `resize` lies between the positions *low and *high of `length` source pixels. */
INLINE float source_position(int64_t i, int64_t resize, int64_t length, int64_t *low, int64_t *high)
{
    float position = (i + 0.5f) * ((float)length / resize) - 0.5f;
    position = position < 0 ? 0 : position;
    *low = smaller((int64_t)position, length - 1);
    *high = smaller(*low + 1, length - 1);
    return position - *low;
}

INLINE void mix_rows(const float *restrict low, const float *restrict high, void *restrict out,
                     int64_t at, int64_t length, float weight, int dtype)
{
    for (int64_t i = 0; i < length; i++)
        store(out, at + i, low[i] + weight * (high[i] - low[i]), dtype);
}

void enlarge(enlarge_arguments *a)
{
    /* channels_last: a row of all channels; contiguous: a row of each channel. */
    int64_t parts = a->channels_last ? 1 : 3, step = 3 / parts;
    int64_t whole = step * a->resize, length = step * a->crop, row = parts * length;
    int64_t plane = a->height * a->width;
    /* One block for values of four bytes: the image, its stretched rows, three for each column. */
    size_t four_byte_values = (size_t)(3 * plane + a->height * row + 3 * parts * whole);
    float *values = malloc(four_byte_values * sizeof *values);
    if (values == NULL) {
        a->out_of_memory = 1;
        return;
    }
    float *stretched = values + 3 * plane, *weight = stretched + a->height * row;
    int32_t *low = (int32_t *)(weight + parts * whole), *high = low + parts * whole;
    for (int64_t x = 0; x < a->resize; x++)
        for (int64_t channel = 0; channel < 3; channel++) {
            int64_t left, right, i = a->channels_last ? 3 * x + channel : channel * whole + x;
            weight[i] = source_position(x, a->resize, a->width, &left, &right);
            low[i] = (int32_t)(channel * plane + left);
            high[i] = (int32_t)(channel * plane + right);
        }
    int64_t image;
    while ((image = __atomic_fetch_add(&a->next_image, 1, __ATOMIC_RELAXED)) < a->count) {
        int64_t top = a->corners[2 * image], left = a->corners[2 * image + 1];
        const uint8_t *bytes = (const uint8_t *)a->images + image * 3 * plane;
        const float *floats = (const float *)a->images + image * 3 * plane;
        for (int64_t channel = 0; channel < 3; channel++)
            for (int64_t i = channel * plane; i < (channel + 1) * plane; i++) {
                float value = a->floating ? floats[i] : bytes[i] / 255.0f;
                values[i] = (value * a->scale - a->mean[channel]) / a->std[channel];
            }
        for (int64_t y = 0; y < a->height; y++)
            for (int64_t part = 0; part < parts; part++) {
                const float *from = values + y * a->width;
                float *restrict to = stretched + y * row + part * length;
                int64_t first = part * whole + step * left;
                for (int64_t i = 0; i < length; i++) {
                    float value = from[low[first + i]];
                    to[i] = value + weight[first + i] * (from[high[first + i]] - value);
                }
            }
        for (int64_t y = 0; y < a->crop; y++) {
            int64_t above, below;
            float share = source_position(y + top, a->resize, a->height, &above, &below);
            for (int64_t part = 0; part < parts; part++) {
                const float *upper = stretched + above * row + part * length;
                const float *lower = stretched + below * row + part * length;
                int64_t at = ((image * parts + part) * a->size + y) * step * a->size;
                if (a->dtype == FLOAT32)
                    mix_rows(upper, lower, a->out, at, length, share, FLOAT32);
                else
                    mix_rows(upper, lower, a->out, at, length, share, BFLOAT16);
            }
        }
    }
    free(values);
}

/* Three loops for the CPU that are slow in torch.

   Plain C for gcc and clang, without Python or torch. cpu.py compiles it on first use and calls it
   through ctypes. All threads call an entry function with the same arguments; each computes tiles
   until none is left, and returns.

   An entry function checks its arguments before it reads or writes anything. Where they do not fit
   each other or no memory, it names them in `invalid` and returns. */

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

/* ---- Checks of arguments ---- */

INLINE int is_flag(int64_t value) { return value == 0 || value == 1; }

INLINE size_t width_of(int64_t dtype) { return dtype == FLOAT32 ? 4 : 2; }

/* Whether an address can be that of values of `each` bytes. */
INLINE int points(const void *to, size_t each) { return to != NULL && (uintptr_t)to % each == 0; }

/* Whether a count that all threads add to can be where they are; other threads may be adding. */
INLINE int counts(int64_t *next)
{
    int64_t value = __atomic_load_n(next, __ATOMIC_RELAXED);
    return 0 <= value && value <= INT64_MAX / 2;
}

/* The number of bytes of an array, or 0 if it is larger than any. */
INLINE size_t bytes_of(int64_t a, int64_t b, int64_t c, size_t each)
{
    size_t bytes;
    if (__builtin_mul_overflow((size_t)a, (size_t)b, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)c, &bytes) ||
        __builtin_mul_overflow(bytes, each, &bytes) || bytes > PTRDIFF_MAX / 8)
        return 0;
    return bytes;
}

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
    const char *invalid; /* names of arguments, separated by spaces */
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

static const char *invalid_in_lrn(lrn_arguments *a)
{
    if (!is_flag(a->dtype))
        return "dtype";
    if (!is_flag(a->channels_last))
        return "channels_last";
    size_t each = width_of(a->dtype);
    if (!points(a->x, each))
        return "x";
    if (a->grad != NULL && !points(a->grad, each))
        return "grad";
    if (!points(a->out, each))
        return "out";
    if (a->batch < 1 || a->channels < 1 || a->pixels < 1 ||
        !bytes_of(a->batch, a->channels, a->pixels, each))
        return "batch channels pixels";
    if (a->groups < 1 || a->channels % a->groups)
        return "groups channels";
    /* A wider neighbourhood than this has no further channel. */
    if (a->size < 1 || a->size > 2 * (a->channels / a->groups) - 1)
        return "size channels groups";
    return counts(&a->next_tile) ? NULL : "next_tile";
}

void lrn(lrn_arguments *a)
{
    const char *invalid = invalid_in_lrn(a);
    if (invalid != NULL) {
        a->invalid = invalid;
        return;
    }
    int64_t group = a->channels / a->groups, padded = group + a->size - 1;
    int64_t groups_in_tile = a->channels_last ? a->groups : 1;
    int64_t rows = padded * groups_in_tile, arrays = a->grad ? 3 : 1;
    int64_t scratch_size = a->channels_last ? SCRATCH_CHANNELS_LAST : SCRATCH_CONTIGUOUS;
    int64_t width = scratch_size / (rows * arrays) / VECTOR * VECTOR;
    width = smaller(width < VECTOR ? VECTOR : smaller(width, WIDEST), a->pixels);
    int64_t blocks = (a->pixels + width - 1) / width;
    int64_t tiles = a->batch * (a->groups / groups_in_tile) * blocks;
    size_t scratch_bytes = bytes_of(rows, width, arrays, sizeof(float));
    float *scratch = scratch_bytes ? calloc(1, scratch_bytes) : NULL;
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
            const char *x = (const char *)a->x + at;
            const char *grad = a->grad == NULL ? NULL : (const char *)a->grad + at;
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
   an output row is a weighted mean of two of them. Of the enlarged image there is a window, of
   which each image has its own crop; only source pixels that the window needs are read. The crop is
   written to the upper left of the output. */

typedef struct {
    const void *images;     /* (count, channels, height, width): uint8 0 to 255, float 0 to 1 */
    const int32_t *corners; /* (count, 2): row and column of each crop's corner in the window */
    const float *mean, *std; /* out = (scale * value - mean) / std, values from 0 to 1 */
    void *out;               /* (count, channels, size, size) in its memory format */
    int64_t count, channels, height, width;
    int64_t resized_height, resized_width, top, left; /* the enlarged image; the window's corner */
    int64_t window, crop, size, floating, channels_last, dtype; /* sides of the squares */
    float scale;
    int64_t next_image, out_of_memory;
    const char *invalid; /* names of arguments, separated by spaces */
} enlarge_arguments;

/* Whether a window of `side` pixels from `first` on lies in `resized` pixels made of `length`. */
INLINE int fits(int64_t length, int64_t resized, int64_t first, int64_t side)
{
    const int64_t most = 1 << 30; /* so that products of two do not overflow */
    return 0 < length && length <= most && 0 < resized && resized <= most * 1024 && 0 <= first &&
           0 < side && side <= most && side <= resized - first;
}

/* Position `i` of `resized` lies between the positions *low and *high of `length` source pixels. */
INLINE float source_position(int64_t i, int64_t resized, int64_t length, int64_t *low,
                             int64_t *high)
{
    float position = (i + 0.5f) * ((float)length / resized) - 0.5f;
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

static void enlarge_images(enlarge_arguments *a, int64_t channels)
{
    /* channels_last: a row of all channels; contiguous: a row of each channel. */
    int64_t parts = a->channels_last ? 1 : channels, step = channels / parts;
    int64_t whole = step * a->window, length = step * a->crop, row = parts * length;
    int64_t first_row, end_row, first_column, end_column, unused;
    source_position(a->top, a->resized_height, a->height, &first_row, &unused);
    source_position(a->top + a->window - 1, a->resized_height, a->height, &unused, &end_row);
    source_position(a->left, a->resized_width, a->width, &first_column, &unused);
    source_position(a->left + a->window - 1, a->resized_width, a->width, &unused, &end_column);
    int64_t rows = end_row + 1 - first_row, columns = end_column + 1 - first_column;
    int64_t plane = rows * columns, image_size = a->height * a->width;
    /* Of values of four bytes: the source, its stretched rows, three for each column. */
    size_t source = bytes_of(channels, rows, columns, 4), stretches = bytes_of(rows, row, 1, 4);
    size_t for_columns = bytes_of(3, parts, whole, 4);
    if (!source || !stretches || !for_columns || source / 4 > INT32_MAX) {
        a->invalid = "height width window channels";
        return;
    }
    float *values = malloc(source + stretches + for_columns);
    if (values == NULL) {
        a->out_of_memory = 1;
        return;
    }
    float *stretched = values + channels * plane, *weight = stretched + rows * row;
    int32_t *low = (int32_t *)(weight + parts * whole), *high = low + parts * whole;
    for (int64_t x = 0; x < a->window; x++)
        for (int64_t channel = 0; channel < channels; channel++) {
            int64_t left, right;
            int64_t i = a->channels_last ? channels * x + channel : channel * whole + x;
            weight[i] = source_position(a->left + x, a->resized_width, a->width, &left, &right);
            low[i] = (int32_t)(channel * plane + left - first_column);
            high[i] = (int32_t)(channel * plane + right - first_column);
        }
    int64_t image;
    while ((image = __atomic_fetch_add(&a->next_image, 1, __ATOMIC_RELAXED)) < a->count) {
        int64_t top = a->corners[2 * image], left = a->corners[2 * image + 1];
        if (top < 0 || left < 0 || top > a->window - a->crop || left > a->window - a->crop) {
            a->invalid = "corners";
            continue;
        }
        for (int64_t channel = 0; channel < channels; channel++)
            for (int64_t y = 0; y < rows; y++) {
                int64_t from = (image * channels + channel) * image_size +
                               (first_row + y) * a->width + first_column;
                const uint8_t *bytes = (const uint8_t *)a->images + from;
                const float *floats = (const float *)a->images + from;
                float *restrict to = values + channel * plane + y * columns;
                float mean = a->mean[channel], std = a->std[channel];
                for (int64_t x = 0; x < columns; x++) {
                    float value = a->floating ? floats[x] : bytes[x] / 255.0f;
                    to[x] = (value * a->scale - mean) / std;
                }
            }
        for (int64_t y = 0; y < rows; y++)
            for (int64_t part = 0; part < parts; part++) {
                const float *from = values + y * columns;
                float *restrict to = stretched + y * row + part * length;
                int64_t first = part * whole + step * left;
                for (int64_t i = 0; i < length; i++) {
                    float value = from[low[first + i]];
                    to[i] = value + weight[first + i] * (from[high[first + i]] - value);
                }
            }
        for (int64_t y = 0; y < a->crop; y++) {
            int64_t above, below;
            float share = source_position(a->top + top + y, a->resized_height, a->height, &above,
                                          &below);
            for (int64_t part = 0; part < parts; part++) {
                const float *upper = stretched + (above - first_row) * row + part * length;
                const float *lower = stretched + (below - first_row) * row + part * length;
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

static const char *invalid_in_enlarge(enlarge_arguments *a)
{
    const int64_t longest = 1 << 30; /* so that products of two do not overflow */
    if (!is_flag(a->dtype))
        return "dtype";
    if (!is_flag(a->channels_last))
        return "channels_last";
    if (!is_flag(a->floating))
        return "floating";
    if (!points(a->images, a->floating ? 4 : 1))
        return "images";
    if (!points(a->corners, 4))
        return "corners";
    if (!points(a->mean, 4))
        return "mean";
    if (!points(a->std, 4))
        return "std";
    if (!points(a->out, width_of(a->dtype)))
        return "out";
    if (!fits(a->height, a->resized_height, a->top, a->window) || a->resized_height < a->height)
        return "height resized_height top window";
    if (!fits(a->width, a->resized_width, a->left, a->window) || a->resized_width < a->width)
        return "width resized_width left window";
    if (a->crop < 1 || a->crop > a->window || a->crop > a->size || a->size > longest)
        return "crop window size";
    if (a->count < 1 || a->channels < 1 || a->channels > longest ||
        !bytes_of(a->count, a->channels, a->height * a->width, 4) ||
        !bytes_of(a->count, a->channels, a->size * a->size, 4))
        return "count channels height width size";
    return counts(&a->next_image) ? NULL : "next_image";
}

void enlarge(enlarge_arguments *a)
{
    const char *invalid = invalid_in_enlarge(a);
    if (invalid != NULL) {
        a->invalid = invalid;
        return;
    }
    if (a->channels == 3)
        enlarge_images(a, 3);
    else
        enlarge_images(a, a->channels);
}

/* ---- Shrinking images. Definition: data/preprocess.py, Preprocess. ----

   Bilinear with antialiasing, as torch's and Pillow's: a pixel is the mean of source pixels, with
   weights that fall off linearly to the source distance of two pixels (or of one source pixel, if
   that is more). Of the resized image, only a square window is computed. Rows come first, because
   they are contiguous; both directions together are rounded once. */

typedef struct {
    const uint8_t *images; /* (count, channels, height, width) with these strides */
    uint8_t *out;          /* (count, channels, window, window), contiguous */
    int64_t count, channels, height, width;
    int64_t image_stride, channel_stride, row_stride, column_stride;
    int64_t resized_height, resized_width, top, left; /* the shrunk image; the window's corner */
    int64_t window;
    int64_t next_image, out_of_memory;
    const char *invalid; /* names of arguments, separated by spaces */
} shrink_arguments;

/* Of one direction: each output pixel is the mean of `number` source pixels, from `start[i]` on in
   a span of the source, with the weights from `weight[i * stride]` on; they end with zeros. */
typedef struct {
    float *weight;
    int32_t *start;
    int64_t number, stride, first, end;
} taps;

static int find_taps(taps *t, int64_t resized, int64_t length, int64_t first, int64_t side)
{
    double scale = (double)length / resized, reach = scale < 1 ? 1 : scale;
    int64_t number = t->number = smaller((int64_t)ceil(2 * reach), length);
    int64_t stride = t->stride = (number + 3) / 4 * 4;
    size_t weights = bytes_of(side, stride, 1, sizeof *t->weight);
    size_t starts = bytes_of(side, 1, 1, sizeof *t->start);
    if (!weights || !starts || (t->weight = calloc(1, weights + starts)) == NULL)
        return 0;
    t->start = (int32_t *)(t->weight + side * stride);
    for (int64_t i = 0; i < side; i++) {
        double center = (first + i + 0.5) * scale, sum = 0, low = center - reach + 0.5;
        int64_t start = smaller(low < 0 ? 0 : (int64_t)low, length - number);
        float *weight = t->weight + i * stride;
        if (i == 0)
            t->first = start;
        t->start[i] = (int32_t)(start - t->first);
        t->end = start + number;
        for (int64_t j = 0; j < number; j++) {
            double share = 1 - fabs(start + j + 0.5 - center) / reach;
            sum += weight[j] = share > 0 ? (float)share : 0;
        }
        for (int64_t j = 0; j < number; j++)
            weight[j] = (float)(weight[j] / sum);
    }
    return 1;
}

/* The sum of four weighted rows, added to `to` if there is `more`. */
INLINE void weigh_four(const uint8_t *restrict const row[4], const float weight[4], int64_t step,
                       float *restrict to, int64_t length, int more)
{
    const uint8_t *a = row[0], *b = row[1], *c = row[2], *d = row[3];
    float of_a = weight[0], of_b = weight[1], of_c = weight[2], of_d = weight[3];
    for (int64_t i = 0; i < length; i++) {
        float sum = of_a * a[i * step] + of_b * b[i * step] + of_c * c[i * step] +
                    of_d * d[i * step];
        to[i] = more ? to[i] + sum : sum;
    }
}

/* The mean of `number` rows, of which every `step`-th byte is used. */
INLINE void mean_of_rows(const uint8_t *rows, int64_t stride, int64_t step, const float *weight,
                         int64_t number, float *to, int64_t length)
{
    for (int64_t first = 0; first < number; first += 4) {
        const uint8_t *row[4];
        float share[4];
        for (int64_t j = 0; j < 4; j++) {
            int exists = first + j < number;
            row[j] = rows + (exists ? first + j : first) * stride;
            share[j] = exists ? weight[first + j] : 0;
        }
        if (first == 0)
            weigh_four(row, share, step, to, length, 0);
        else
            weigh_four(row, share, step, to, length, 1);
    }
}

/* Four floats: a pixel of up to four neighbouring channels, not aligned. */
typedef float pixel __attribute__((vector_size(16), aligned(4), may_alias));

/* `line` becomes `side` pixels of four values, each the mean of pixels of the row. */
INLINE void mean_of_pixels(const float *restrict row, taps x, int64_t step, int64_t side,
                           float *restrict line)
{
    for (int64_t i = 0; i < side; i++) {
        const float *from = row + x.start[i] * step, *weight = x.weight + i * x.stride;
        pixel sum = {0};
        for (int64_t j = 0; j < x.number; j += 4, from += 4 * step, weight += 4)
            sum += weight[0] * *(const pixel *)from + weight[1] * *(const pixel *)(from + step) +
                   weight[2] * *(const pixel *)(from + 2 * step) +
                   weight[3] * *(const pixel *)(from + 3 * step);
        *(pixel *)(line + 4 * i) = sum;
    }
}

static void shrink_image(const shrink_arguments *a, const uint8_t *from, uint8_t *out, taps y,
                         taps x, float *row)
{
    int64_t side = a->window, columns = x.end - x.first, step = a->column_stride;
    int interleaved = a->channel_stride == 1 && (step == 3 || step == 4) && a->channels <= step;
    float *line = row + 4 * (columns + 4); /* weights of 0 have source pixels, too */
    from += y.first * a->row_stride + x.first * step;
    for (int64_t i = 0; i < side; i++) {
        const uint8_t *rows = from + y.start[i] * a->row_stride;
        const float *weight = y.weight + i * y.stride;
        uint8_t *to = out + i * side;
        if (interleaved) {
            /* The last pixel's unused channels may lie outside of the image. */
            int64_t length = (columns - 1) * step + a->channels;
            mean_of_rows(rows, a->row_stride, 1, weight, y.number, row, length);
            if (step == 3)
                mean_of_pixels(row, x, 3, side, line);
            else
                mean_of_pixels(row, x, 4, side, line);
            for (int64_t channel = 0; channel < a->channels; channel++)
                for (int64_t j = 0; j < side; j++)
                    to[channel * side * side + j] = (uint8_t)(line[4 * j + channel] + 0.5f);
            continue;
        }
        for (int64_t channel = 0; channel < a->channels; channel++) {
            const uint8_t *plane = rows + channel * a->channel_stride;
            if (step == 1)
                mean_of_rows(plane, a->row_stride, 1, weight, y.number, row, columns);
            else
                mean_of_rows(plane, a->row_stride, step, weight, y.number, row, columns);
            /* In the order of mean_of_pixels, so that both layouts give the same bytes. The weights
               past x.number are 0, and `row` is long enough. */
            for (int64_t j = 0; j < side; j++) {
                const float *source = row + x.start[j], *share = x.weight + j * x.stride;
                float sum = 0;
                for (int64_t k = 0; k < x.number; k += 4)
                    sum += share[k] * source[k] + share[k + 1] * source[k + 1] +
                           share[k + 2] * source[k + 2] + share[k + 3] * source[k + 3];
                to[channel * side * side + j] = (uint8_t)(sum + 0.5f);
            }
        }
    }
}

/* Whether `number` values `stride` bytes apart lie in memory. */
INLINE int is_stride(int64_t stride, int64_t number)
{
    int64_t last;
    return stride >= 0 && !__builtin_mul_overflow(stride, number, &last) && last <= PTRDIFF_MAX / 8;
}

static const char *invalid_in_shrink(shrink_arguments *a)
{
    if (!points(a->images, 1))
        return "images";
    if (!points(a->out, 1))
        return "out";
    if (!fits(a->height, a->resized_height, a->top, a->window))
        return "height resized_height top window";
    if (!fits(a->width, a->resized_width, a->left, a->window))
        return "width resized_width left window";
    if (a->count < 1 || a->channels < 1 ||
        !bytes_of(a->count, a->channels, a->height * a->width, 1) ||
        !bytes_of(a->count, a->channels, a->window * a->window, 1))
        return "count channels height width window";
    if (!is_stride(a->image_stride, a->count))
        return "image_stride count";
    if (!is_stride(a->channel_stride, a->channels))
        return "channel_stride channels";
    if (!is_stride(a->row_stride, a->height))
        return "row_stride height";
    if (!is_stride(a->column_stride, a->width))
        return "column_stride width";
    return counts(&a->next_image) ? NULL : "next_image";
}

static void shrink_images(shrink_arguments *a)
{
    taps y = {0}, x = {0};
    float *row = NULL;
    size_t size = 0;
    if (find_taps(&y, a->resized_height, a->height, a->top, a->window) &&
        find_taps(&x, a->resized_width, a->width, a->left, a->window) &&
        (size = bytes_of(4, x.end - x.first + 4 + a->window, 1, sizeof *row)) &&
        (row = calloc(1, size))) {
        int64_t image;
        while ((image = __atomic_fetch_add(&a->next_image, 1, __ATOMIC_RELAXED)) < a->count)
            shrink_image(a, a->images + image * a->image_stride,
                         a->out + image * a->channels * a->window * a->window, y, x, row);
    } else
        a->out_of_memory = 1;
    free(row);
    free(x.weight);
    free(y.weight);
}

void shrink(shrink_arguments *a)
{
    const char *invalid = invalid_in_shrink(a);
    if (invalid != NULL)
        a->invalid = invalid;
    else
        shrink_images(a);
}

/* The greatest entries of rows of logits: what is slow about sampling, without the interpreter.
 *
 * A row is read once, in groups of LANES columns of LAYERS entries: the greatest of each column. The count-th greatest of
 * those bounds the answer from below, so that only the few columns that reach it are looked at again, while the row is
 * still in the core's cache.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define LANES 32
#define LAYERS 64
#define GROUP (LANES * LAYERS)

#if defined(__x86_64__)
#define EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_CPU
#endif

typedef struct {
    float value;
    int64_t id;
} entry;

/* Of equal values the later id goes first out of the heap. */
static int below(entry a, entry b) { return a.value < b.value || (a.value == b.value && a.id > b.id); }

static void sift(entry *heap, int64_t size, int64_t at, entry it)
{
    for (int64_t child = 2 * at + 1; child < size; at = child, child = 2 * at + 1) {
        if (child + 1 < size && below(heap[child + 1], heap[child]))
            child++;
        if (!below(heap[child], it))
            break;
        heap[at] = heap[child];
    }
    heap[at] = it;
}

/* A heap of the `count` greatest so far, the least at its top. Ids come in order; what is forbidden or NaN is passed
 * over. */
static void offer(entry *heap, int64_t *size, int64_t count, float value, int64_t id)
{
    entry it = {value, id};
    if (*size < count) {
        if (!(value > -INFINITY))
            return;
        int64_t at = (*size)++;
        for (; at && below(it, heap[(at - 1) / 2]); at = (at - 1) / 2)
            heap[at] = heap[(at - 1) / 2];
        heap[at] = it;
    } else if (value > heap[0].value) {
        sift(heap, count, 0, it);
    }
}

EVERY_CPU void llmd_maxima(const float *row, int64_t groups, float *maxima)
{
    for (int64_t g = 0; g < groups; g++, row += GROUP, maxima += LANES) {
        float most[LANES];
        for (int i = 0; i < LANES; i++)
            most[i] = -INFINITY;
        for (int j = 0; j < GROUP; j += LANES)
            for (int i = 0; i < LANES; i++)
                most[i] = row[j + i] > most[i] ? row[j + i] : most[i];
        for (int i = 0; i < LANES; i++)
            maxima[i] = most[i];
    }
}

static void top(const float *row, int64_t size, int64_t count, float *maxima, entry *heap, int64_t *ids, float *values)
{
    int64_t groups = size / GROUP, columns = groups * LANES, held = 0, found;
    float bound = -INFINITY;
    llmd_maxima(row, groups, maxima);
    for (int64_t c = 0; c < columns; c++)
        offer(heap, &held, count, maxima[c], c);
    if (held == count)
        bound = heap[0].value;
    held = 0;
    for (int64_t g = 0; g < groups; g++, maxima += LANES) {
        /* a column that only ties with the least holds nothing of an earlier id; many tie where a vocabulary repeats */
        int lanes[LANES], wanted = 0;
        for (int i = 0; i < LANES; i++)
            if (maxima[i] > -INFINITY && maxima[i] >= bound && (held < count || maxima[i] > heap[0].value))
                lanes[wanted++] = i;
        for (int64_t i = g * GROUP; wanted && i < (g + 1) * GROUP; i += LANES)
            for (int n = 0; n < wanted; n++)
                offer(heap, &held, count, row[i + lanes[n]], i + lanes[n]);
    }
    for (int64_t i = groups * GROUP; i < size; i++)
        offer(heap, &held, count, row[i], i);
    for (found = held; held > 0;) {
        entry least = heap[0];
        held--;
        sift(heap, held, 0, heap[held]);
        ids[held] = least.id;
        values[held] = least.value;
    }
    for (; found < count; found++) { /* all the others are forbidden, or not numbers */
        ids[found] = 0;
        values[found] = -INFINITY;
    }
}

/* Of each of `n` rows (indices into `logits`, which has `size` entries a row) the `count` greatest, greatest first, of
 * equals the first; where there are fewer numbers, 0 with minus infinity. Returns 0, or -1 without memory. */
int llmd_top(const float *logits, int64_t size, const int64_t *rows, int64_t n, int64_t count, int64_t *ids, float *values)
{
    float *maxima = malloc((size_t)(size / LAYERS + 1) * sizeof *maxima);
    entry *heap = malloc((size_t)count * sizeof *heap);
    int bad = !maxima || !heap;
    for (int64_t i = 0; i < n && !bad; i++)
        top(logits + rows[i] * size, size, count, maxima, heap, ids + i * count, values + i * count);
    free(maxima);
    free(heap);
    return bad ? -1 : 0;
}

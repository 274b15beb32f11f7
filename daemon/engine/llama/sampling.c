/* Choosing tokens from rows of logits, without the interpreter and in as many threads as are awake.
 *
 * A row is read once, in groups of LANES columns of LAYERS entries: the greatest of each column. The count-th greatest of
 * those bounds the answer from below, so that only the few columns that reach it are looked at again, while the row is
 * still in the core's cache.
 *
 * Whoever calls works too, and threads that wake up meanwhile take rows as well: handing over a row never costs more than
 * looking at it.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#define LANES 32
#define LAYERS 64
#define GROUP (LANES * LAYERS)
/* rows for which it is worth waking one more thread: that takes about as long as looking at two */
#define ROWS_A_THREAD 3

#if defined(__x86_64__)
#define EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_CPU
#endif

/* What `sampling.py` keeps of a slot, in the order of its STATE. */
typedef struct {
    int64_t top_k;
    double top_p, min_p, temperature;
    uint64_t seed, drawn;
} sequence;

typedef struct {
    float value;
    int64_t id;
} entry;

/* A thread's own memory, and a row's `held` greatest, greatest first. */
typedef struct {
    float *maxima;
    entry *heap;
} scratch;

typedef struct {
    const float *logits;
    int64_t size, n, most; /* entries a row; rows; the most likeliest that any row asks for */
    const int64_t *rows;
    int64_t count; /* of `likeliest`: how many each row asks for */
    int64_t *ids;
    float *values;
    double *norms;
    const int64_t *slots; /* of `choose`; NULL: `likeliest` */
    sequence *sequences;
    int64_t *tokens;
    const uint32_t *const *masks; /* of `forbid`, one a row; NULL: another */
    atomic_llong next; /* the first row that nobody has taken */
    atomic_int failed;
} job;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t begin, end;
    job *job; /* NULL: there is none */
    int busy, closing, count;
    int64_t used; /* of `count`: so many are woken */
    pthread_t threads[];
} pool;

/* --- the greatest of a row */

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

/* The `count` greatest into the scratch's heap, greatest first, of equals the first. Returns how many there are. */
static int64_t top(const float *row, int64_t size, int64_t count, scratch mine)
{
    int64_t groups = size / GROUP, columns = groups * LANES, held = 0, found;
    entry *heap = mine.heap;
    const float *maxima = mine.maxima;
    float bound = -INFINITY;
    llmd_maxima(row, groups, mine.maxima);
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
    for (found = held; held > 1;) {
        entry least = heap[0], last = heap[--held];
        sift(heap, held, 0, last);
        heap[held] = least;
    }
    return found;
}

/* --- what a row is read for */

/* A number in [0, 1): SplitMix64 (Steele, Lea, Flood 2014) of seed and count, so it depends on nothing else. */
static double uniform(sequence *s)
{
    uint64_t z = s->seed + ++s->drawn * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

/* llama.cpp's filters in its order: top-k, top-p, min-p, temperature. */
static int64_t choose(const float *row, int64_t size, sequence *s, scratch mine)
{
    const entry *best = mine.heap;
    int64_t held = top(row, size, s->top_k < size ? s->top_k : size, mine), left = 0;
    double luck = uniform(s), whole = 0, before = 0, chances = 0;
    if (held == 0)
        return 0; /* all are forbidden, or not numbers */
    for (int64_t i = 0; i < held; i++)
        whole += exp((double)best[i].value - best[0].value);
    for (; left < held; left++) {
        double weight = exp((double)best[left].value - best[0].value);
        if (left > 0 && (before >= s->top_p * whole || weight < s->min_p))
            break; /* so are those behind it */
        before += weight;
    }
    for (int64_t i = 0; i < left; i++)
        chances += exp(((double)best[i].value - best[0].value) / s->temperature);
    luck *= chances;
    chances = 0;
    for (int64_t i = 0; i < left - 1; i++) {
        chances += exp(((double)best[i].value - best[0].value) / s->temperature);
        if (chances > luck)
            return best[i].id;
    }
    return best[left - 1].id;
}

static void likeliest(const float *row, const job *work, int64_t n, scratch mine)
{
    int64_t held = top(row, work->size, work->most, mine);
    double sum = 0;
    for (int64_t i = 0; i < work->count; i++) {
        work->ids[n * work->count + i] = i < held ? mine.heap[i].id : 0;
        work->values[n * work->count + i] = i < held ? mine.heap[i].value : -INFINITY;
    }
    for (int64_t i = 0; held && i < work->size; i++)
        sum += expf(row[i] - mine.heap[0].value);
    work->norms[n] = held ? mine.heap[0].value + log(sum) : -INFINITY;
}

/* --- what a row must not give */

/* Entries without a bit in the mask are minus infinity from here on. */
EVERY_CPU void llmd_masked(float *row, int64_t size, const uint32_t *mask)
{
    for (int64_t i = 0; i < size; i += 32) {
        uint32_t bits = mask[i / 32];
        int64_t end = size - i < 32 ? size - i : 32;
        if (bits == UINT32_MAX)
            continue;
        for (int64_t j = 0; j < end; j++)
            row[i + j] = bits >> j & 1 ? row[i + j] : -INFINITY;
    }
}

/* --- the threads */

static void take_rows(job *work)
{
    scratch mine = {malloc((size_t)(work->size / LAYERS + 1) * sizeof(float)),
                    malloc((size_t)work->most * sizeof(entry))};
    if (!mine.maxima || !mine.heap)
        work->failed = 1;
    for (int64_t n; !work->failed && (n = work->next++) < work->n;) {
        const float *row = work->logits + work->rows[n] * work->size;
        if (work->masks)
            llmd_masked((float *)row, work->size, work->masks[n]);
        else if (work->slots)
            work->tokens[n] = choose(row, work->size, &work->sequences[work->slots[n]], mine);
        else
            likeliest(row, work, n, mine);
    }
    free(mine.maxima);
    free(mine.heap);
}

static void *help(void *given)
{
    pool *p = given;
    pthread_mutex_lock(&p->lock);
    while (!p->closing) {
        job *work = p->job;
        if (!work || work->next >= work->n) {
            pthread_cond_wait(&p->begin, &p->lock);
            continue;
        }
        p->busy++;
        pthread_mutex_unlock(&p->lock);
        take_rows(work);
        pthread_mutex_lock(&p->lock);
        if (!--p->busy)
            pthread_cond_signal(&p->end);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int run(pool *p, job *work)
{
    int64_t wake = work->n / ROWS_A_THREAD;
    pthread_mutex_lock(&p->lock);
    p->job = work;
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->count && i < p->used && i < wake; i++)
        pthread_cond_signal(&p->begin);
    take_rows(work);
    pthread_mutex_lock(&p->lock);
    p->job = NULL; /* who wakes up now comes too late, and is not waited for */
    while (p->busy)
        pthread_cond_wait(&p->end, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return work->failed ? -1 : 0;
}

/* --- what Python calls */

void llmd_close(pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->closing = 1;
    pthread_cond_broadcast(&p->begin);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->count; i++)
        pthread_join(p->threads[i], NULL);
    free(p);
}

/* `helpers` threads beside the caller's, fewer where the system gives no more; NULL without memory. */
pool *llmd_open(int64_t helpers)
{
    pool *p = calloc(1, sizeof *p + (size_t)helpers * sizeof(pthread_t));
    if (!p)
        return NULL;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->begin, NULL);
    pthread_cond_init(&p->end, NULL);
    p->used = helpers;
    while (p->count < helpers && !pthread_create(&p->threads[p->count], NULL, help, p))
        p->count++;
    return p;
}

/* Wake so many helpers at most from now on. */
void llmd_use(pool *p, int64_t helpers) { p->used = helpers; }

/* A token for each of `n` rows (indices into `logits`, which has `size` entries a row), of the sequence in its slot; 0
 * where a row holds no number. Returns 0, or -1 without memory. */
int llmd_choose(pool *p, const float *logits, int64_t size, const int64_t *rows, const int64_t *slots, int64_t n,
                sequence *sequences, int64_t *tokens)
{
    job work = {.logits = logits, .size = size, .n = n, .most = 1, .rows = rows,
                .slots = slots, .sequences = sequences, .tokens = tokens};
    for (int64_t i = 0; i < n; i++)
        if (sequences[slots[i]].top_k > work.most)
            work.most = sequences[slots[i]].top_k;
    return run(p, &work);
}

/* Of each row the `count` greatest, greatest first, of equals the first (where there are fewer numbers, 0 with minus
 * infinity), and the logarithm of the sum of all its entries' exponentials. Returns 0, or -1 without memory. */
int llmd_likeliest(pool *p, const float *logits, int64_t size, const int64_t *rows, int64_t n, int64_t count,
                   int64_t *ids, float *values, double *norms)
{
    job work = {.logits = logits, .size = size, .n = n, .most = count > 1 ? count : 1, .rows = rows,
                .count = count, .ids = ids, .values = values, .norms = norms};
    return run(p, &work);
}

/* Take from `n` rows the entries that their masks have no bit for: a bit an entry, the lowest first, in 32-bit words.
 * Returns 0, or -1 without memory. */
int llmd_forbid(pool *p, float *logits, int64_t size, const int64_t *rows, const uint32_t *const *masks, int64_t n)
{
    job work = {.logits = logits, .size = size, .n = n, .most = 1, .rows = rows, .masks = masks};
    return run(p, &work);
}

/* The processor's kernels, compiled by `processor.py`.

   W' = W + B A, each element the number of W's dtype (bf16, fp16 or fp32) nearest to the sum in fp64. A tile of sums lives
   in registers from reading W to writing W', so that nothing wide but the factors passes through memory. For bf16 sums are
   made in fp32, twice as fast, with a bound of their error; what comes too near to the middle of two numbers for that is
   made again in fp64. Vectors are the compiler's own (GCC and Clang), as wide as the processor's. */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 8, VECTORS = 4, ROWS = 6 }; /* 24 of 32 registers */
#elif defined(__AVX2__)
enum { LANES = 4, VECTORS = 2, ROWS = 6 }; /* 12 of 16 */
#else
enum { LANES = 2, VECTORS = 4, ROWS = 6 };
#endif
enum { WIDTH = LANES * VECTORS };
enum { BF16, F16, F32 };
enum { CACHED = 1 << 18 }; /* bytes of A that stay in the cache while rows go past */
enum { CHAIN = 8 };        /* products summed in fp32 before they are added to the sum of those before */

typedef double f64v __attribute__((vector_size(8 * LANES)));
typedef uint64_t u64v __attribute__((vector_size(8 * LANES)));
typedef float f32v __attribute__((vector_size(4 * LANES)));
typedef uint32_t u32v __attribute__((vector_size(4 * LANES)));
typedef uint16_t u16v __attribute__((vector_size(2 * LANES)));
typedef float w32v __attribute__((vector_size(8 * LANES))); /* twice as many numbers */
typedef uint32_t wu32v __attribute__((vector_size(8 * LANES)));
typedef uint16_t wu16v __attribute__((vector_size(4 * LANES)));
typedef uint16_t row16v __attribute__((vector_size(2 * WIDTH)));
typedef uint32_t row32v __attribute__((vector_size(2 * WIDTH))); /* half a row */

#define INLINE static inline __attribute__((always_inline))
#define CONVERT __builtin_convertvector
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* `kind` is a constant wherever these are inlined. */

INLINE int64_t size_of(const int kind) { return kind == F32 ? 4 : 2; }

INLINE u32v load(const int kind, const char *from) {
    if (kind == F32) {
        u32v bits;
        memcpy(&bits, from, sizeof bits);
        return bits;
    }
    u16v bits;
    memcpy(&bits, from, sizeof bits);
    return CONVERT(bits, u32v);
}

INLINE void store(const int kind, char *to, u32v bits) {
    if (kind == F32) {
        memcpy(to, &bits, sizeof bits);
    } else {
        u16v low = CONVERT(bits, u16v);
        memcpy(to, &low, sizeof low);
    }
}

INLINE f64v widen(const int kind, u32v bits) {
    if (kind == F32) return CONVERT((f32v)bits, f64v);
    if (kind == BF16) return CONVERT((f32v)(bits << 16), f64v);
    f32v size = (f32v)((bits & 0x7FFF) << 13) * 0x1p112f; /* subnormal numbers too */
    return CONVERT((f32v)((u32v)size | (bits & 0x8000) << 16), f64v);
}

/* Whether any of the upper 16 bits is set. */
INLINE int top_bits(wu32v x) {
    wu16v top = CONVERT(x >> 16, wu16v);
    uint64_t parts[sizeof top / 8], found = 0;
    memcpy(parts, &top, sizeof top);
    UNROLL for (size_t k = 0; k < sizeof top / 8; k++) found |= parts[k];
    return found != 0;
}

/* The nearest numbers, ties to even, from the bits of fp64: above `least` some digits are gone, below it, among the
   subnormal numbers, all digits of less than a fixed worth, which adding a large number takes away. */
INLINE u32v nearest(const int kind, f64v x) {
    if (kind == F32) return (u32v)CONVERT(x, f32v);
    const int gone = kind == BF16 ? 52 - 7 : 52 - 10;
    const double least = kind == BF16 ? 0x1p-126 : 0x1p-14, large = kind == BF16 ? 0x1.8p-81 : 0x1.8p28;
    const uint64_t one = 1, half = (one << (gone - 1)) - 1, rest = (one << gone) - 1;
    u64v bits = (u64v)x, sign = bits & one << 63;
    u64v near = (bits + half + (bits >> gone & one)) & ~rest;
    f64v small = (f64v)(bits ^ sign);
    u64v below = (u64v)(small < least);
    small = (small + large) - large;
    u32v single = (u32v)CONVERT((f64v)((near & ~below) | (((u64v)small | sign) & below)), f32v); /* exact */
    if (kind == BF16) return single >> 16;
    f32v size = (f32v)(single & 0x7FFFFFFF) * 0x1p-112f;
    return (u32v)size >> 13 | (single >> 16 & 0x8000);
}

/* B (rows, rank) and A (rank, columns), the latter's rows `pitch` numbers apart, of which there are a multiple of WIDTH.
   `last_b` is B's last ROWS rows from row `whole` on, a multiple of ROWS, with zeros after its end. The same in fp32, A in
   panels of WIDTH columns, each (rank, WIDTH), in the order of `column`; and bounds of what sums of those are wrong by, in the
   same order: |error| < b_bound[i] a_bound[j], 0 in rows and columns that are not there. */
typedef struct {
    const double *b, *last_b, *a;
    float *b_single, *a_single, *b_bound, *a_bound;
    int64_t rows, whole, columns, pitch, rank;
    int64_t single; /* whether sums in fp32 stay in its range */
    int64_t same;   /* whether A in fp32 is A */
} factors;

INLINE const double *b_row(const factors *f, int64_t row) {
    return row < f->whole ? f->b + row * f->rank : f->last_b + (row - f->whole) * f->rank;
}

typedef struct {
    f64v square[VECTORS]; /* sums of squares of W */
    row16v over;          /* not zero where W' is NaN or infinite, as it is where W is */
    row16v changed;       /* elements whose bits changed: to be emptied before 2^16 rows */
} totals;

/* A tile is ROWS x WIDTH elements from row `row` and panel `panel` on: `from` in W and `to` in W', whose rows are `pitch`
   bytes apart. */

/* Counts what changed in a tile, and looks for what is not finite, when it is done. */
INLINE void look(const int kind, const char *from, const char *to, int64_t pitch, totals *total) {
    UNROLL for (int i = 0; i < ROWS; i++, from += pitch, to += pitch) {
        if (kind == F32) {
            UNROLL for (int j = 0; j < 2; j++) {
                row32v old, new, top = (row32v){0} + 0x7F800000u;
                memcpy(&old, from + 2 * WIDTH * j, sizeof old);
                memcpy(&new, to + 2 * WIDTH * j, sizeof new);
                total->changed += (row16v)((row32v)(old != new) & 1); /* in one half of each */
                total->over |= (row16v)((new & top) == top);
            }
        } else {
            row16v old, new, top = (row16v){0} + (uint16_t)(kind == BF16 ? 0x7F80 : 0x7C00);
            memcpy(&old, from, sizeof old);
            memcpy(&new, to, sizeof new);
            total->changed -= (row16v)(old != new);
            total->over |= (row16v)((new & top) == top);
        }
    }
}

/* A tile with sums in fp64. */
INLINE void sum_double(const int kind, const char *from, char *to, int64_t pitch, const factors *f, int64_t row,
                       int64_t panel, totals *total) {
    const double *b = b_row(f, row), *a = f->a + panel * WIDTH;
    const int64_t step = LANES * size_of(kind);
    f64v x[ROWS][VECTORS];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < VECTORS; j++) {
            x[i][j] = widen(kind, load(kind, from + i * pitch + j * step));
            total->square[j] += x[i][j] * x[i][j];
        }
    for (int64_t r = 0; r < f->rank; r++, a += f->pitch) {
        f64v line[VECTORS];
        UNROLL for (int j = 0; j < VECTORS; j++) memcpy(&line[j], a + j * LANES, sizeof line[j]);
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < VECTORS; j++) x[i][j] += b[i * f->rank + r] * line[j];
    }
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < VECTORS; j++) store(kind, to + i * pitch + j * step, nearest(kind, x[i][j]));
    look(kind, from, to, pitch, total);
}

/* A row of a tile of bf16 as fp32, and back from the upper halves of such bits: its even and its odd columns, which takes
   no more than a shift and a mask, where a row is two vectors of fp32. `column` is where a column is then. */
enum { WIDE = VECTORS / 2, STEP = 2 * LANES, PAIRS = WIDE == 2 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ };

INLINE int column(int k) { return PAIRS ? k % 2 * STEP + k / 2 : k; }

INLINE void apart(const char *row, w32v *w) {
    UNROLL for (int j = 0; j < WIDE; j++) {
        wu32v pairs;
        wu16v part;
        if (PAIRS) {
            memcpy(&pairs, row, sizeof pairs);
            w[j] = (w32v)(j ? pairs & 0xFFFF0000u : pairs << 16);
        } else {
            memcpy(&part, row + sizeof part * j, sizeof part);
            w[j] = (w32v)(CONVERT(part, wu32v) << 16);
        }
    }
}

INLINE void together(const wu32v *bits, row16v *row) {
    wu32v pairs = bits[0] >> 16 | (bits[WIDE - 1] & 0xFFFF0000u);
    if (PAIRS) memcpy(row, &pairs, sizeof *row);
    UNROLL for (int j = 0; j < WIDE && !PAIRS; j++) {
        wu16v part = CONVERT(bits[j] >> 16, wu16v);
        memcpy((char *)row + sizeof part * j, &part, sizeof part);
    }
}

/* Elements of row `row` and panel `panel` of bf16 with sums in fp64, those where any of the upper 16 bits of `differ` is set. */
static void __attribute__((noinline)) sum_again(const char *from, char *to, const factors *f, int64_t row, int64_t panel,
                                                const wu32v *differ) {
    const double *b = b_row(f, row), *a = f->a + panel * WIDTH;
    const float *near = f->a_single + panel * WIDTH * f->rank; /* A as it was just used: in the first cache */
    uint32_t lanes[WIDTH];
    memcpy(lanes, differ, sizeof lanes);
    for (int k = 0; k < WIDTH; k++) {
        if (!(lanes[column(k)] >> 16)) continue;
        uint16_t bits;
        memcpy(&bits, from + 2 * k, sizeof bits);
        double x = widen(BF16, (u32v){0} + bits)[0];
        if (f->same)
            for (int64_t r = 0; r < f->rank; r++) x += b[r] * near[column(k) + r * WIDTH];
        else
            for (int64_t r = 0; r < f->rank; r++) x += b[r] * a[k + r * f->pitch];
        bits = (uint16_t)nearest(BF16, (f64v){0} + x)[0];
        memcpy(to + 2 * k, &bits, sizeof bits);
    }
}

/* A tile of bf16 with sums in fp32, and in fp64 where these do not decide. They do where both ends of the interval that
   holds W + B A round to one number: the bound of B A's error to both sides, and two units in the last place for the
   roundings of the sum and of the ends. */
INLINE void sum_single(const char *from, char *to, int64_t pitch, const factors *f, int64_t row, int64_t panel,
                       totals *total) {
    const float *b = f->b_single + row * f->rank, *a = f->a_single + panel * WIDTH * f->rank;
    w32v x[ROWS][WIDE], bound[WIDE];
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int j = 0; j < WIDE; j++) x[i][j] = (w32v){0};
    for (int64_t first = 0; first < f->rank; first += CHAIN) {
        w32v chain[ROWS][WIDE];
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < WIDE; j++) chain[i][j] = (w32v){0};
        for (int64_t r = first; r < first + CHAIN && r < f->rank; r++, a += WIDTH)
            UNROLL for (int j = 0; j < WIDE; j++) {
                w32v line;
                memcpy(&line, a + j * STEP, sizeof line);
                UNROLL for (int i = 0; i < ROWS; i++) chain[i][j] += b[i * f->rank + r] * line;
            }
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int j = 0; j < WIDE; j++) x[i][j] += chain[i][j];
    }
    UNROLL for (int j = 0; j < WIDE; j++) memcpy(&bound[j], f->a_bound + panel * WIDTH + STEP * j, sizeof bound[j]);
    wu32v differ[ROWS][WIDE], any = {0};
    row16v over = total->over, changed = total->changed; /* as `look` has them: it would wait for what was just stored */
    UNROLL for (int i = 0; i < ROWS; i++) {
        row16v old, new, top = (row16v){0} + (uint16_t)0x7F80;
        w32v w[WIDE];
        wu32v high[WIDE];
        memcpy(&old, from + i * pitch, sizeof old);
        apart(from + i * pitch, w);
        UNROLL for (int j = 0; j < WIDE; j++) {
            w32v sum = w[j] + x[i][j];
            w32v error = f->b_bound[row + i] * bound[j] + (w32v)((wu32v)sum & 0x7FFFFFFF) * 0x1p-22f;
            high[j] = (wu32v)(sum + error) + 0x8000;
            differ[i][j] = high[j] ^ ((wu32v)(sum - error) + 0x8000);
            any |= differ[i][j];
            f32v halves[2];
            memcpy(halves, &w[j], sizeof halves);
            UNROLL for (int k = 0; k < 2; k++) {
                f64v wide = CONVERT(halves[k], f64v);
                total->square[2 * j + k] += wide * wide;
            }
        }
        together(high, &new);
        changed -= (row16v)(new != old);
        over |= (row16v)((new & top) == top);
        memcpy(to + i * pitch, &new, sizeof new);
    }
    if (!top_bits(any)) {
        total->over = over, total->changed = changed;
        return;
    }
    for (int i = 0; i < ROWS; i++)
        if (top_bits(differ[i][0] | differ[i][WIDE - 1]))
            sum_again(from + i * pitch, to + i * pitch, f, row + i, panel, differ[i]);
    look(BF16, from, to, pitch, total);
}

INLINE void sum_tile(const int kind, const char *from, char *to, int64_t pitch, const factors *f, int64_t row,
                     int64_t panel, totals *total) {
    if (kind == BF16 && f->single)
        sum_single(from, to, pitch, f, row, panel, total);
    else
        sum_double(kind, from, to, pitch, f, row, panel, total);
}

/* A tile at an edge, `rows` x `columns` of it: through memory of its own, filled up with zeros. */
INLINE void sum_edge(const int kind, const char *from, char *to, int64_t pitch, const factors *f, int64_t row,
                     int64_t panel, int64_t rows, int64_t columns, totals *total) {
    const int64_t size = size_of(kind);
    char old[ROWS * WIDTH * 4] = {0}, new[ROWS * WIDTH * 4];
    for (int64_t i = 0; i < rows; i++) memcpy(old + i * WIDTH * size, from + i * pitch, columns * size);
    sum_tile(kind, old, new, WIDTH * size, f, row, panel, total);
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * pitch, new + i * WIDTH * size, columns * size);
}

/* Whether none of `count` numbers is NaN or infinite. */
int numllm_finite(int kind, const void *numbers, int64_t count) {
    if (kind == F32) {
        const uint32_t *x = numbers, top = 0x7F800000;
        uint32_t any = 0;
        for (int64_t i = 0; i < count; i++) any |= (x[i] & top) == top;
        return !any;
    }
    const uint16_t *x = numbers, top = kind == BF16 ? 0x7F80 : 0x7C00;
    uint16_t any = 0;
    for (int64_t i = 0; i < count; i++) any |= (x[i] & top) == top;
    return !any;
}

INLINE int fold(const int kind, const char *w, char *out, int64_t rows, int64_t columns, const factors *f, int64_t row,
                double *square, int64_t *changed) {
    const int64_t size = size_of(kind), pitch = columns * size, panels = (columns + WIDTH - 1) / WIDTH;
    const int64_t held = 1 + CACHED / ((kind == BF16 ? 4 : 8) * WIDTH * (f->rank + 1));
    totals total;
    memset(&total, 0, sizeof total);
    *changed = 0;
    for (int64_t first = 0; first < panels; first += held)
        for (int64_t i = 0; i < rows; i += ROWS) {
            for (int64_t panel = first; panel < first + held && panel < panels; panel++) {
                const int64_t high = rows - i, wide = columns - panel * WIDTH, at = i * pitch + panel * WIDTH * size;
                if (high >= ROWS && wide >= WIDTH)
                    sum_tile(kind, w + at, out + at, pitch, f, row + i, panel, &total);
                else
                    sum_edge(kind, w + at, out + at, pitch, f, row + i, panel, high < ROWS ? high : ROWS,
                             wide < WIDTH ? wide : WIDTH, &total);
            }
            for (int k = 0; k < WIDTH; k++) *changed += total.changed[k];
            total.changed = (row16v){0};
        }
    int over = 0;
    *square = 0;
    for (int k = 0; k < WIDTH; k++) *square += total.square[k / LANES][k % LANES];
    for (int k = 0; k < WIDTH; k++) over |= total.over[k];
    return over ? 2 | !numllm_finite(kind, w, rows * columns) : 0;
}

/* out = the numbers nearest to w + B A: `rows` x `columns` of dtype `kind`, contiguous, rows `row` and on of the whole.
   square: the sum of the squares of w. changed: elements whose bits are not those of w. Returns 1 where w holds NaN or
   infinity, + 2 where out does. */
int numllm_fold(int kind, const char *w, char *out, int64_t rows, int64_t columns, const factors *f, int64_t row,
                double *square, int64_t *changed) {
    switch (kind) {
    case BF16: return fold(BF16, w, out, rows, columns, f, row, square, changed);
    case F16: return fold(F16, w, out, rows, columns, f, row, square, changed);
    default: return fold(F32, w, out, rows, columns, f, row, square, changed);
    }
}

/* Fills what follows `a`. The bounds are made of norms in which product r counts `times[r]`, less 1 for each factor that is
   fp32 already. */
void numllm_fold_prepare(factors *f, const double *times, double b_unit, double a_unit, double least) {
    const int64_t high = f->whole + (f->whole < f->rows ? ROWS : 0), panels = f->pitch / WIDTH;
    int64_t other_b = 0, other_a = 0;
    for (int64_t i = 0; i < high; i++) {
        const double *b = b_row(f, i);
        for (int64_t r = 0; r < f->rank; r++) {
            const float single = (float)b[r];
            f->b_single[i * f->rank + r] = single;
            other_b |= single != b[r];
        }
    }
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t r = 0; r < f->rank; r++) {
            const double *a = f->a + panel * WIDTH + r * f->pitch;
            float *to = f->a_single + (panel * f->rank + r) * WIDTH;
            for (int k = 0; k < WIDTH; k++) {
                const float single = (float)a[k];
                to[column(k)] = single;
                other_a |= single != a[k];
            }
        }
    f->same = !other_a;
    const double less = !other_a + !other_b;
    double most_b = 0, most_a = 0;
    for (int64_t i = 0; i < high; i++) {
        const double *b = b_row(f, i);
        double sum = 0;
        for (int64_t r = 0; r < f->rank; r++) sum += (times[r] - less) * b[r] * b[r];
        if (sum > most_b) most_b = sum;
        f->b_bound[i] = (float)(__builtin_sqrt(sum) * b_unit + least);
    }
    for (int64_t panel = 0; panel < panels; panel++) {
        double sums[WIDTH] = {0};
        for (int64_t r = 0; r < f->rank; r++) {
            const double *a = f->a + panel * WIDTH + r * f->pitch;
            for (int k = 0; k < WIDTH; k++) sums[k] += (times[r] - less) * a[k] * a[k];
        }
        for (int k = 0; k < WIDTH; k++) {
            if (sums[k] > most_a) most_a = sums[k];
            f->a_bound[panel * WIDTH + column(k)] = (float)(__builtin_sqrt(sums[k]) * a_unit + least);
        }
    }
    const double range = 0x1p240; /* squares are compared */
    f->single = most_b < range && most_a < range && most_b * most_a < range;
}

enum { MOST = 128, DEEP = 64, PITCH = MOST + WIDTH }; /* columns, rows of a block in the first cache */

/* g += xᵀ x, on and above the diagonal; x (DEEP, columns), zero from there to the next multiple of WIDTH and ROWS. */
static void add_gram(double (*g)[PITCH], double (*x)[PITCH], int64_t columns) {
    for (int64_t i = 0; i < columns; i += ROWS)
        for (int64_t j = i / WIDTH * WIDTH; j < columns; j += WIDTH) {
            f64v sum[ROWS][VECTORS], line[VECTORS];
            UNROLL for (int a = 0; a < ROWS; a++)
                UNROLL for (int b = 0; b < VECTORS; b++) memcpy(&sum[a][b], g[i + a] + j + b * LANES, sizeof sum[a][b]);
            for (int n = 0; n < DEEP; n++) {
                UNROLL for (int b = 0; b < VECTORS; b++) memcpy(&line[b], x[n] + j + b * LANES, sizeof line[b]);
                UNROLL for (int a = 0; a < ROWS; a++)
                    UNROLL for (int b = 0; b < VECTORS; b++) sum[a][b] += x[n][i + a] * line[b];
            }
            UNROLL for (int a = 0; a < ROWS; a++)
                UNROLL for (int b = 0; b < VECTORS; b++) memcpy(g[i + a] + j + b * LANES, &sum[a][b], sizeof sum[a][b]);
        }
}

/* The triangle R (columns, columns) of x = Q R, x (rows, columns) in fp64, element (i, k) at i down + k along: the Cholesky
   factor of xᵀ x. Returns ‖R‖ ‖R⁻¹‖, Frobenius, which no condition number of x exceeds; 0 where there is no R, x being of
   lower rank as far as that can be told. columns <= MOST. */
double numllm_triangle(const double *x, int64_t rows, int64_t columns, int64_t down, int64_t along, double *r) {
    double g[MOST + ROWS][PITCH], block[DEEP][PITCH], row[MOST], size = 0, inverse = 0;
    memset(g, 0, (columns + ROWS) * sizeof *g);
    memset(block, 0, sizeof block);
    for (int64_t first = 0; first < rows; first += DEEP) {
        const int64_t deep = rows - first < DEEP ? rows - first : DEEP;
        const double *from = x + first * down;
        if (deep < DEEP) memset(block, 0, sizeof block);
        if (along == 1)
            for (int64_t i = 0; i < deep; i++) memcpy(block[i], from + i * down, columns * sizeof *from);
        else
            for (int64_t k = 0; k < columns; k++)
                for (int64_t i = 0; i < deep; i++) block[i][k] = from[i * down + k * along];
        add_gram(g, block, columns);
    }
    for (int64_t k = 0; k < columns; k++) {
        if (!(g[k][k] > 0)) return 0;
        const double root = __builtin_sqrt(g[k][k]);
        for (int64_t j = k; j < columns; j++) g[k][j] /= root, size += g[k][j] * g[k][j];
        for (int64_t i = k + 1; i < columns; i++)
            for (int64_t j = i; j < columns; j++) g[i][j] -= g[k][i] * g[k][j];
    }
    for (int64_t i = 0; i < columns; i++) { /* row i of R⁻¹, by forward substitution */
        memset(row, 0, sizeof row);
        row[i] = 1;
        for (int64_t k = i; k < columns; k++) {
            const double value = row[k] / g[k][k];
            inverse += value * value;
            for (int64_t j = k + 1; j < columns; j++) row[j] -= value * g[k][j];
        }
    }
    for (int64_t i = 0; i < columns; i++)
        for (int64_t j = 0; j < columns; j++) r[i * columns + j] = j < i ? 0 : g[i][j];
    return __builtin_sqrt(size) * __builtin_sqrt(inverse);
}

int numllm_fold_rows(void) { return ROWS; }
int numllm_fold_width(void) { return WIDTH; }
int numllm_fold_chain(void) { return CHAIN; }
